"""Balanced attention: what matters among channels, and where, side by side (Wang et al., BAM, 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OFFSET = 2.0  # inside both sigmoids: they start at 0.88 each, not at 1/2, which would shrink x to a quarter


class BalancedAttention(nn.Module):
    """x (B, C, H, W) times a gate per channel and a gate per pixel, both in (0, 1).

    565 parameters at 64 channels and 8,257 at 256, as published. The channel gate averages over the
    image, so a tile is not treated as the whole would be; never part of a blind-spot network.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 16, 4)
        self.channel = nn.Sequential(
            nn.Conv2d(channels, narrow, 1, bias=False), nn.PReLU(narrow), nn.Conv2d(narrow, channels, 1, bias=False)
        )
        self.place = nn.Conv2d(1, 1, 7, padding=3, bias=False)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate per channel (B, C, 1, 1) and the gate per pixel (B, 1, H, W)."""
        channel = torch.sigmoid(self.channel(x.mean(dim=(2, 3), keepdim=True)) + OFFSET)
        place = torch.sigmoid(self.place(x.amax(dim=1, keepdim=True)) + OFFSET)
        return channel, place

    def forward(self, x: Tensor) -> Tensor:
        channel, place = self.gates(x)
        return x * channel * place
