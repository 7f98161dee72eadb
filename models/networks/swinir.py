"""SwinIR-light: attention in 8x8 windows, every other time shifted by half of one (Liang et al., 2021).

The reference comparator of `SSFormerUpscaler`: no token sees beyond its window and the neighbours, but
layer by layer. What would cross the border of a shifted image is masked; the mask follows from comparing
positions, so that any size is exported by one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import pad_to_multiple
from models.networks.ssformer import SIDE, TOKENS, Attention, ChannelNorm
from models.networks.upscaler import CLEARANCE, check_scale, direct_tail, upscale

SHIFT = SIDE // 2
OFFSETS = 2 * SIDE - 1  # along each axis, between two tokens of a window
MASKED = -1e4  # finite, so that nothing is undefined; exp(-1e4) is exactly 0


def windows(x: Tensor) -> Tensor:
    """x (H, W), multiples of 8 -> the tokens of each window, (windows, 64)."""
    rows, columns = x.shape
    cells = x.reshape(rows // SIDE, SIDE, columns // SIDE, SIDE)
    return cells.permute(0, 2, 1, 3).reshape(-1, TOKENS)


def crossing_mask(x: Tensor) -> Tensor:
    """What is added to the logits of shifted x (B, C, H, W), (windows, 1, 64, 64): far below 0 across its border."""

    def zones(side: int) -> Tensor:  # 0; 1 in the last window; 2 where it holds what came around
        place = torch.arange(side, device=x.device)
        return (place >= side - SIDE).long() + (place >= side - SHIFT).long()

    zone = windows(3 * zones(x.shape[-2])[:, None] + zones(x.shape[-1])[None, :])
    return (zone[:, None, :, None] != zone[:, None, None, :]).to(x.dtype) * MASKED


def offset_index() -> Tensor:
    """Which row of a table of offsets belongs to each pair of tokens, (64, 64)."""
    place = torch.arange(TOKENS)
    down = (place[:, None] // SIDE) - (place[None, :] // SIDE) + SIDE - 1
    across = (place[:, None] % SIDE) - (place[None, :] % SIDE) + SIDE - 1
    return down * OFFSETS + across


class ShiftedAttention(Attention):
    """Attention within windows, with a bias for each offset between two tokens instead of each pair."""

    offsets: Tensor

    def __init__(self, channels: int, heads: int, shift: int) -> None:
        super().__init__(channels, heads, sparse=False)
        self.shift = shift
        self.position = nn.Parameter(torch.empty(OFFSETS**2, heads))
        self.register_buffer("offsets", offset_index(), persistent=False)
        for weight in (self.qkv.weight, self.project.weight, self.position):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """`mask` as `crossing_mask` gives it; unused where nothing is shifted."""
        bias = self.position[self.offsets].permute(2, 0, 1)
        if not self.shift:
            return self.scatter(self.mix(self.gather(x), bias))
        shifted = self.gather(torch.roll(x, (-self.shift, -self.shift), (2, 3)))
        return torch.roll(self.scatter(self.mix(shifted, bias + mask)), (self.shift, self.shift), (2, 3))


class SwinBlock(nn.Module):
    """x + attention, then + two 1x1 convolutions with a GELU between."""

    def __init__(self, channels: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm_attention = ChannelNorm(channels)
        self.attention = ShiftedAttention(channels, heads, shift)
        self.norm_mix = ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x), mask)
        mixed: Tensor = self.narrow(F.gelu(self.widen(self.norm_mix(x))))
        return x + mixed


class SwinGroup(nn.Module):
    """Blocks, every second one shifted, a 3x3 convolution, and the way around."""

    def __init__(self, channels: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(channels, heads, SHIFT * (i % 2)) for i in range(blocks))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        change: Tensor = x
        for block in self.blocks:
            change = block(change, mask)
        change = self.conv(change)
        return x + change


class SwinIR(nn.Module):
    """Maps image (B, colours, H, W) to (B, colours, sH, sW), H and W from 1 up, aligned by pixel area.

    By default "lightweight SR": with 3 colours 910,152 parameters at x2 and 929,628 at x4, as published.
    """

    def __init__(
        self,
        scale: int,
        channels: int = 60,
        groups: int = 4,
        blocks: int = 6,
        heads: int = 6,
        colours: int = 1,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels {channels} must be a multiple of heads {heads}")
        self.scale = check_scale(scale)
        self.multiple = SIDE
        self.exact_tiling = False
        self.radius = CLEARANCE
        self.head = nn.Conv2d(colours, channels, 3, padding=1)
        self.norm_first = ChannelNorm(channels)
        self.groups = nn.ModuleList(SwinGroup(channels, heads, blocks) for _ in range(groups))
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = direct_tail(channels, scale, colours)

    def detail(self, x: Tensor) -> Tensor:
        """What is added to the interpolation, for an image (B, colours, H, W) of mean 0 and deviation 1."""
        rows, columns = self.scale * x.shape[-2], self.scale * x.shape[-1]
        padded = pad_to_multiple(x, SIDE)
        mask = crossing_mask(padded)
        shallow = self.head(padded)
        deep = self.norm_first(shallow)
        for group in self.groups:
            deep = group(deep, mask)
        added: Tensor = self.tail(shallow + self.conv(self.norm(deep)))
        return added[..., :rows, :columns]

    def forward(self, image: Tensor) -> Tensor:
        return upscale(image, self.scale, self.detail)
