"""From a network that predicts noise to the `restore` graph of a denoise bundle.

The three noise parameters are slope a, offset b and floor c on the unit scale: the noise variance
at signal x is max(a x + b, c) (Poisson-Gaussian, Foi et al. 2008, with a floor where the line
would reach zero).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PARAMETERS = ["variance_slope", "variance_offset", "variance_floor"]
LIMIT = 5.0  # no pixel is changed by more than this many standard deviations of the noise told


def local_mean(image: Tensor) -> Tensor:
    """5x5 box mean of image (B, 1, H, W), edges replicated: the cheap signal estimate."""
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, (1, 5), stride=1), (5, 1), stride=1)


def noise_map(image: Tensor, parameters: Tensor) -> Tensor:
    """Standard deviation of the noise per pixel, (B, 1, H, W), for parameters (B, 3)."""
    slope, offset, floor = (parameters[:, i, None, None, None] for i in range(len(PARAMETERS)))
    variance = torch.maximum(slope * local_mean(image) + offset, floor)
    return torch.sqrt(F.relu(variance))


class Denoiser(nn.Module):
    """Wraps a noise predictor f(image, noise map) -> noise, both (B, 1, H, W).

    The predicted noise is limited to +-5 standard deviations of the noise that the network is told
    of, so the image comes back unchanged, to the bit, at strength 0 or where there is no noise, and
    no pixel can move further than noise could have moved it. Positively homogeneous if f is.
    """

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, image: Tensor, parameters: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 1, H, W), parameters (B, 3), strength (B,) -> restored, noise map, (B, 1, H, W)."""
        noise = noise_map(image, parameters)
        told = noise * strength[:, None, None, None]
        predicted = self.predictor(image, told)
        bound = LIMIT * told
        return image - torch.maximum(torch.minimum(predicted, bound), -bound), noise
