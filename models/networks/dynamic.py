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
    """3x3 convolution with the mean of K kernels, weighted per image by what the image holds (Chen et al., 2020).

    Either one kernel per image, as groups of one convolution, or one convolution with all K kernels
    and the weighted sum of its outputs. The two are the same up to rounding; the first is up to seven
    times faster, but only the second can be exported: the number of groups would be the batch's.
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

    def kernel_per_image(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W), kernels mixed before the convolution."""
        batch, channels, rows, columns = x.shape
        choice = self.choice(x)
        weight = (choice @ self.conv.weight.reshape(self.kernels, -1)).reshape(batch * channels, channels, 3, 3)
        bias = (choice @ self.conv.bias.reshape(self.kernels, -1)).flatten()  # type: ignore[union-attr]
        side_by_side = x.reshape(1, batch * channels, rows, columns)
        return F.conv2d(side_by_side, weight, bias, padding=1, groups=batch).reshape(x.shape)

    def output_per_kernel(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W), outputs mixed after the convolution."""
        outputs = self.conv(x).reshape(x.shape[0], self.kernels, self.channels, x.shape[2], x.shape[3])
        mixed: Tensor = (outputs * self.choice(x)[:, :, None, None, None]).sum(dim=1)
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        exported = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return self.output_per_kernel(x) if exported else self.kernel_per_image(x)


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
        self.exact_tiling = False
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
