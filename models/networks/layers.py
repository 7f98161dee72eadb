"""Building blocks that several networks share.

All of them are free of additive constants where the docstring says homogeneous: scaling the input
by a positive gain scales the output by the same gain, so that a trained network does not care in
which unit an image is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column until both sides of x (B, C, H, W) are multiples of `multiple`."""
    rows, columns = x.shape[-2], x.shape[-1]
    below, right = (multiple - rows % multiple) % multiple, (multiple - columns % multiple) % multiple
    return F.pad(x, (0, right, 0, below), mode="replicate")


class ZeroSumConv(nn.Module):
    """3x3 convolution whose weights over the first `image_channels` inputs sum to zero per output.

    Adding a constant to those inputs then changes nothing: with bias-free layers behind it, a
    network becomes indifferent to the pedestal an image sits on. Edges are replicated, because a
    border of zeros would bring the pedestal back. Runs in float32 even under autocast: bfloat16
    cannot hold weak noise on a strong signal. Homogeneous.
    """

    def __init__(self, image_channels: int, other_channels: int, out_channels: int) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.conv = nn.Conv2d(image_channels + other_channels, out_channels, 3, bias=False)

    def zero_sum_weight(self) -> Tensor:
        """The kernel (out, in, 3, 3) that is applied."""
        image, other = self.conv.weight[:, : self.image_channels], self.conv.weight[:, self.image_channels :]
        return torch.cat([image - image.mean(dim=(1, 2, 3), keepdim=True), other], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        if self.training:
            with torch.autocast(x.device.type, enabled=False):
                return F.conv2d(padded.float(), self.zero_sum_weight().float())
        return F.conv2d(padded, self.zero_sum_weight())


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), 3x3, no bias, no normalisation. Homogeneous."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        with torch.no_grad():
            self.second.weight.mul_(0.1)  # near identity at the start: deep stacks train from step 0

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(F.relu(self.first(x)))
        return x + change


def residual_blocks(channels: int, count: int) -> nn.Sequential:
    """`count` residual blocks in a row."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))
