"""DRAN: a denoiser whose kernels depend on the image (Sharif et al., 2020, "dynamic residual attention").

As published, except for what was in its way: three blocks that are all used, a temperature that
falls, biases that start at zero, no batch normalisation (the noise varies between images) and no tanh;
and it is told the noise's level and colour. A tile's kernels come from the tile: tiles of one size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.denoiser import CONDITIONS

HOT, COLD, ANNEALED = 30.0, 1.0, 0.1  # temperature at the start, from then on, and the share of steps between
SMALLEST_NOISE = 1e-6  # unit scale: below it the image is not amplified any further


class DynamicConv(nn.Module):
    """3x3 convolution with the mean of K kernels, weighted per image by what the image holds.

    Computed as one convolution with K outputs for each channel and their weighted sum (Chen et al.,
    dynamic convolution, 2020): the same numbers as one kernel per image, and it can be exported.
    """

    temperature: Tensor

    def __init__(self, channels: int, kernels: int) -> None:
        super().__init__()
        self.channels, self.kernels = channels, kernels
        narrow = max(channels // 4, 1)
        self.squeeze = nn.Conv2d(channels, narrow, 1, bias=False)
        self.choose = nn.Conv2d(narrow, kernels, 1, bias=False)
        self.conv = nn.Conv2d(channels, kernels * channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.register_buffer("temperature", torch.tensor(HOT))

    def choice(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the weight of each kernel (B, K), in (0, 1), sum 1."""
        logits: Tensor = self.choose(F.relu(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))).flatten(1)
        return (logits.float() / self.temperature).softmax(dim=1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        all_kernels: Tensor = self.conv(x)
        outputs = all_kernels.reshape(x.shape[0], self.kernels, self.channels, x.shape[2], x.shape[3])
        return (outputs * self.choice(x)[:, :, None, None, None]).sum(dim=1)


class NoiseGate(nn.Module):
    """LeakyReLU(conv(x) * sigmoid(conv'(x))): the way around a block, open where there is noise.

    Edges are replicated, not reflected as published: that needs two pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 3)
        self.gate = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.leaky_relu(self.value(padded) * torch.sigmoid(self.gate(padded)), 0.2)


class DynamicBlock(nn.Module):
    """A few dynamic convolutions with ReLU, plus the gated input."""

    def __init__(self, channels: int, depth: int, kernels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(DynamicConv(channels, kernels) for _ in range(depth))
        self.gate = NoiseGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        deep = x
        for conv in self.convs:
            deep = F.relu(conv(deep))
        gated: Tensor = self.gate(x)
        return deep + gated


class DynamicResidual(nn.Module):
    """DRAN: predicts the noise in image (B, 1, H, W), given its level and colour, condition (B, C, H, W).

    The image is measured in units of its mean noise level, so the network is exactly homogeneous.
    Any H and W from 1 up.
    """

    def __init__(
        self, channels: int = 64, blocks: int = 3, depth: int = 5, kernels: int = 4, conditions: int = CONDITIONS
    ) -> None:
        super().__init__()
        self.multiple = 1
        self.radius = 2 + blocks * depth  # of its convolutions; the kernels' choice sees the whole tile
        self.head = nn.Conv2d(1 + conditions, channels, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(DynamicBlock(channels, depth, kernels) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.tail.weight)  # starts as the identity

    def anneal(self, progress: float) -> None:
        """Sets the temperature for a training that has done `progress` (0 to 1) of its steps."""
        temperature = max(COLD, HOT + (COLD - HOT) * progress / ANNEALED)
        for module in self.modules():
            if isinstance(module, DynamicConv):
                module.temperature.fill_(temperature)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        level = torch.sqrt((condition[:, :1] ** 2).mean(dim=(1, 2, 3), keepdim=True))
        unit = torch.clamp(level, min=SMALLEST_NOISE)
        centred = (image - image.mean(dim=(2, 3), keepdim=True)) / unit
        shallow = F.relu(self.head(torch.cat([centred, condition / unit], dim=1)))
        noise: Tensor = self.tail(self.blocks(shallow))
        return unit * noise
