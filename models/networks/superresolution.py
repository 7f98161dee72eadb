"""ResidualUpscaler: the efficient convolutional super-resolver for x2 and x4.

EDSR-style residual blocks at low resolution and a pixel-shuffle tail (Lim et al., 2017), without
bias and blind to the pedestal, on top of bicubic interpolation: a constant image stays constant,
and what the network adds is detail only.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import ZeroSumConv, residual_blocks
from models.networks.upscaler import check_scale, interpolate


class ResidualUpscaler(nn.Module):
    """Maps image (B, 1, H, W) to (B, 1, sH, sW), aligned by pixel area (half-pixel centres)."""

    def __init__(self, scale: int, channels: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.scale = check_scale(scale)
        self.multiple = 1
        self.exact_tiling = True
        self.radius = 2 + 2 * blocks  # head, blocks, tail; the bicubic skip needs only 2
        self.head = ZeroSumConv(1, 0, channels)
        self.body = residual_blocks(channels, blocks)
        self.tail = nn.Conv2d(channels, scale**2, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        features = self.head(image)  # blind to the pedestal; a mean taken off would make tiles differ by rounding
        return interpolate(image, self.scale) + F.pixel_shuffle(self.tail(self.body(features)), self.scale)
