"""BliMSR's generator: residual blocks with multi-head convolutional attention (Dey et al., 2023).

Its heads are those of Georgescu et al., MHCA, 2023. Unlike the publication: same-padded convolutions
instead of valid and transposed ones (equal but for borders, and exported cleanly), a bicubic way around
and a linear output: a sigmoid has no gradient left at air and bone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.upscaler import CLEARANCE, check_scale, shuffle_tail, upscale

KERNELS = (1, 3, 5)
RATIO = 4  # of a head's inner channels to the outer ones


def head(channels: int, kernel: int) -> nn.Sequential:
    """One head of the attention: to a quarter of the channels and back, `kernel` wide."""
    narrow, padding = max(channels // RATIO, 1), kernel // 2
    return nn.Sequential(
        nn.Conv2d(channels, narrow, kernel, padding=padding),
        nn.ReLU(),
        nn.Conv2d(narrow, channels, kernel, padding=padding),
    )


class ConvolutionalAttention(nn.Module):
    """x (B, C, H, W) times a gate in (0, 1) per channel and pixel, found by convolutions of three widths."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head(channels, kernel) for kernel in KERNELS)

    def forward(self, x: Tensor) -> Tensor:
        narrow, middle, wide = (head(x) for head in self.heads)
        return x * torch.sigmoid(narrow + middle + wide)


class AttentiveBlock(nn.Module):
    """x + attention(conv(relu(conv(x)))), 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = ConvolutionalAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.attention(self.second(torch.relu(self.first(x))))
        return x + change


class Shortcut(nn.Module):
    """Blocks in a row, and the way around them."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(AttentiveBlock(channels) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.blocks(x)
        return x + change


class BliMSR(nn.Module):
    """Maps image (B, colours, H, W) to (B, colours, sH, sW), H and W from 1 up, aligned by pixel area.

    `groups` groups of `blocks` residual blocks. By default the published size, 19,107,073 parameters at x4.
    """

    def __init__(self, scale: int, channels: int = 64, groups: int = 8, blocks: int = 16, colours: int = 1) -> None:
        super().__init__()
        self.scale = check_scale(scale)
        self.multiple = 1
        self.exact_tiling = False  # convolutions alone would, but the unit is the tile's
        self.radius = CLEARANCE
        self.head = nn.Conv2d(colours, channels, 3, padding=1)
        self.groups = nn.Sequential(*(Shortcut(channels, blocks) for _ in range(groups)))
        self.conv = nn.Conv2d(channels, channels, 1)
        self.tail = shuffle_tail(channels, scale, colours, inputs=2 * channels, kernel=1)

    def detail(self, x: Tensor) -> Tensor:
        """What is added to the interpolation, for an image (B, colours, H, W) of mean 0 and deviation 1."""
        shallow = self.head(x)
        added: Tensor = self.tail(torch.cat([self.conv(self.groups(shallow)), shallow], dim=1))
        return added

    def forward(self, image: Tensor) -> Tensor:
        return upscale(image, self.scale, self.detail)
