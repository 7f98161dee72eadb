"""NoiseLevel: how noisy an image is, as a function of its signal, and of what colour (the `estimate` graph).

Unlike the published CNN_est, a stack of 1x1 convolutions that sees only the histogram, it has
spatial support: it looks at 4x4 cells with their neighbourhood, says for each how large the noise
is, how it correlates and how far that can be trusted, and pools all of them. What the whole image
has in common tells noise from texture: cells are told the mean of all cells half-way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.denoiser import COLOUR
from models.networks.layers import ZeroSumConv, pad_to_multiple

CELL = 4
FLOOR = 1 / 16  # smallest variance, as a share of the mean one
RIDGE = 10.0  # signal variance, in noise variances, below which no slope is claimed
TINY = 1e-20  # avoids 0 / 0 on constant images; far under the square of any real noise level


class NoiseLevel(nn.Module):
    """Maps image (B, 1, H, W) to noise parameters (B, 7): slope, offset, floor of the variance; four correlations.

    Homogeneous of degree one in the noise level (the parameters of c*image are c*slope, c^2*offset,
    c^2*floor and the same correlations), and blind to the pedestal except that the line is placed on
    the signal axis.
    """

    def __init__(self, channels: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.head = ZeroSumConv(CELL**2, 0, channels)
        self.body = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(depth - 1))
        self.context = nn.Conv2d(channels, channels, 1, bias=False)  # from the mean of all cells to each of them
        self.cell_heads = nn.Conv2d(channels, 3 + len(COLOUR), 1, bias=False)

    def cells(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per 4x4 cell: noise standard deviation, trust in [0, 1], mean signal, each (B, N); covariances (B, 4, N)."""
        padded = pad_to_multiple(image, CELL)
        centred = padded - padded.mean(dim=(2, 3), keepdim=True)
        x = F.relu(self.head(F.pixel_unshuffle(centred, CELL)))
        for index, conv in enumerate(self.body):
            if index == len(self.body) // 2:
                x = x + self.context(x.mean(dim=(2, 3), keepdim=True))
            x = F.relu(conv(x))
        heads = self.cell_heads(x).float().flatten(2)
        level, support, doubt = heads[:, :3].abs().unbind(dim=1)
        trust = (support / (support + doubt + TINY)) ** 2
        return level, trust, F.avg_pool2d(padded, CELL).flatten(1), heads[:, 3:]

    def forward(self, image: Tensor) -> Tensor:
        level, trust, signal, related = self.cells(image)
        weight = (trust + 1e-4) / (trust + 1e-4).sum(dim=1, keepdim=True)
        variance = level**2
        mean_variance = (weight * variance).sum(dim=1, keepdim=True)
        mean_signal = (weight * signal).sum(dim=1, keepdim=True)
        deviation = signal - mean_signal
        covariance = (weight * deviation * (variance - mean_variance)).sum(dim=1, keepdim=True)
        spread = (weight * deviation**2).sum(dim=1, keepdim=True)
        slope = covariance / (spread + RIDGE * mean_variance + TINY)
        # A ratio of second moments, so gain cancels; tanh keeps it a correlation.
        shared = (weight[:, None] * related * level[:, None]).sum(dim=2) / (mean_variance + TINY)
        offset = mean_variance - slope * mean_signal
        return torch.cat([slope, offset, FLOOR * mean_variance, torch.tanh(shared)], dim=1)
