"""What super-resolvers share: bicubic interpolation as the way around, the unit of measure, the tail.

Every network adds detail to bicubic interpolation, so an untrained one is bicubic interpolation. Layers
with biases, norms or gates care in which unit an image is measured, and medical units differ; they are
therefore shown the image without its mean, divided by its standard deviation, and what they answer is
multiplied by it again. That makes any network indifferent to pedestal and gain, and leaves a constant
image constant. The price: the mean and the deviation are those of the tile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALES = (2, 4)
CLEARANCE = 32  # pixels kept clear of a tile's edge by networks that are told of all of the tile
SMALLEST_SPREAD = 1e-6  # unit scale, a tenth of a 16-bit step: below it an image counts as constant


def interpolate(image: Tensor, scale: int) -> Tensor:
    """Bicubic, (B, C, H, W) -> (B, C, sH, sW), on the pixel-area grid (half-pixel centres)."""
    # upwards no anti-aliasing is needed; align_corners=False is the pixel-area grid
    return F.interpolate(image, scale_factor=float(scale), mode="bicubic", align_corners=False)


def upscale(image: Tensor, scale: int, detail: Callable[[Tensor], Tensor]) -> Tensor:
    """Bicubic interpolation of image (B, C, H, W) plus what `detail` finds in it, (B, C, sH, sW).

    `detail` is given the image with mean 0 and standard deviation 1 (each member of the batch for
    itself, its colours together), or all but zero where the image is constant.
    """
    centred = image - image.mean(dim=(1, 2, 3), keepdim=True)
    spread = torch.sqrt((centred**2).mean(dim=(1, 2, 3), keepdim=True) + SMALLEST_SPREAD**2)
    return interpolate(image, scale) + spread * detail(centred / spread)


def check_scale(scale: int) -> int:
    """The scale. Raises ValueError where it is neither 2 nor 4."""
    if scale not in SCALES:
        raise ValueError(f"scale {scale} is neither 2 nor 4")
    return scale


def shuffle_tail(
    channels: int, factor: int, colours: int = 1, *, inputs: int | None = None, kernel: int = 3
) -> nn.Sequential:
    """Features (B, inputs, H, W) -> (B, colours, factor H, factor W) in steps of 2 (a power of it); zero at the start.

    Each step is a 3x3 convolution to four times `channels` and a pixel shuffle (Shi et al., 2016).
    """
    steps: list[nn.Module] = []
    width = channels if inputs is None else inputs
    while factor > 1:
        steps += [nn.Conv2d(width, 4 * channels, 3, padding=1), nn.PixelShuffle(2)]
        factor, width = factor // 2, channels
    return nn.Sequential(*steps, zeroed(nn.Conv2d(width, colours, kernel, padding=kernel // 2)))


def direct_tail(channels: int, factor: int, colours: int = 1) -> nn.Sequential:
    """Features (B, C, H, W) -> (B, colours, factor H, factor W) by one convolution and shuffle; zero at the start."""
    conv = nn.Conv2d(channels, colours * factor**2, 3, padding=1)
    return nn.Sequential(zeroed(conv), nn.PixelShuffle(factor))


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with weights and bias of zero."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
