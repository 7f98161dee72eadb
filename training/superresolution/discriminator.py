"""The discriminator of adversarial super-resolution: residual, spectrally normalised, for any size.

Seven residual blocks as in BliMSR (Dey et al., 2023), of which every second one halves the image. Published is spectral
normalisation of the blocks alone, and a last layer that fits 512x512 only; here every layer is normalised (Miyato et
al., 2018), and the last one sees means over the image, or every place of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (1, 2, 2, 4, 4, 8, 8)  # of the blocks, in channels of the first
SLOPE = 0.01  # of the leaky ReLU
FIRST_ITERATIONS = 15  # of the power method, when a layer is made


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Size and head of the discriminator."""

    channels: int = 64  # of the first block; the last has eight times as many
    blocks: int = 7  # the first so many of the seven
    head: str = "patch"  # one decision for each place, or "pool": one for the image
    gain: float = 10.0  # of the image: detail of a few per cent must not vanish between layers of norm 1

    def __post_init__(self) -> None:
        if self.head not in ("patch", "pool"):
            raise ValueError(f"discriminator.head: {self.head!r} is neither patch nor pool")
        if self.channels < 1 or not 1 <= self.blocks <= len(WIDTHS) or self.gain <= 0:
            raise ValueError(f"discriminator: channels >= 1, blocks 1 to {len(WIDTHS)} and gain > 0 are needed")


class SpectralConv(nn.Conv2d):
    """A convolution whose kernel, as a matrix (out, in * k * k), has a largest singular value of 1.

    One step of the power method with each training pass, in float32 also under autocast; its vector `left` is part of
    the state, so that a resumed run goes on exactly.
    """

    left: Tensor

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, size, stride, padding=size // 2)
        self.register_buffer("left", F.normalize(torch.randn(out_channels), dim=0))
        for _ in range(FIRST_ITERATIONS):
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """One step of the power method."""
        matrix = self.weight.flatten(1)
        self.left.copy_(F.normalize(matrix @ F.normalize(matrix.T @ self.left, dim=0), dim=0))

    def normalised(self) -> Tensor:
        """The kernel (out, in, k, k) that is applied."""
        matrix, left = self.weight.flatten(1), self.left.clone()  # a later step must not change this graph
        right = F.normalize(matrix.detach().T @ left, dim=0)
        kernel: Tensor = self.weight / (left @ matrix @ right)
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                self.iterate()
            weight = self.normalised()
        found: Tensor = self._conv_forward(x, weight, self.bias)
        return found


class Block(nn.Module):
    """skip(x) + conv(act(conv(x))); with `stride` 2 half as large and twice as wide."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = SpectralConv(in_channels, out_channels, 3, stride)
        self.second = SpectralConv(out_channels, out_channels, 3)
        self.stride, self.copies = stride, out_channels // in_channels

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(F.leaky_relu(self.first(x), SLOPE))
        if self.stride > 1:  # rounds odd sides up, as the convolution does
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return torch.cat([x] * self.copies, dim=1) + change


class Discriminator(nn.Module):
    """Maps image (B, 1, H, W), unit scale, any size from 8x8 up, to logits: high for a real one.

    (B, 1, 1, 1) with the head "pool"; with "patch" (B, 1, h, w), one for each place, h = H / 8 rounded up.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.channels * width for width in WIDTHS[: config.blocks]]
        self.gain, self.pools = config.gain, config.head == "pool"
        self.first = SpectralConv(1, widths[0], 3)
        self.blocks = nn.ModuleList(
            Block(before, width, 1 + (width > before))
            for before, width in zip([widths[0], *widths], widths, strict=False)
        )
        self.head = SpectralConv(widths[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first((image - 0.5) * self.gain)
        for block in self.blocks:
            x = block(F.leaky_relu(x, SLOPE))
        x = F.leaky_relu(x, SLOPE)
        logits: Tensor = self.head(x.mean(dim=(2, 3), keepdim=True) if self.pools else x)
        return logits
