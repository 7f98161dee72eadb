"""The critic of the learned degradation: is this patch of a few pixels from a real low-resolution image?"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

AROUND = 9  # pixels whose mean is taken off: brightness and anatomy are not the degradation's


class PatchCritic(nn.Module):
    """Three 3 x 3 convolutions of stride 1 with spectral norm, so a field of view of 7 pixels.

    It sees an image less its local mean, in units of `level`: it shall judge sharpness and noise, and neither what is
    in the pictures nor how bright that is.
    """

    def __init__(self, level: float, features: int) -> None:
        """`level`: root mean square of what is left of real images less their local mean."""
        super().__init__()
        self.level = level
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(1, features, 3)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(features, features, 3)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(features, features, 3)),
            nn.LeakyReLU(0.2),
            nn.Conv2d(features, 1, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 1, H, W), sides of 7 at least -> how real each place looks (B, 1, H - 6, W - 6); real is 1."""
        return cast(Tensor, self.layers(fine(image) / self.level))


def fine(image: Tensor) -> Tensor:
    """image (B, 1, H, W) less its local mean."""
    return image - F.avg_pool2d(image, AROUND, 1, AROUND // 2, count_include_pad=False)
