"""Blind-spot networks: the mean of a pixel from its neighbours alone, never from the pixel itself.

After a convolution whose centre is masked, and whose kernel is 2s - 1 wide, a feature holds its
neighbours at offsets below s; everything behind moves by multiples of s, so no path leads back to
offset 0 (Wu et al., D-BSN, 2020; Lee et al., AP-BSN, 2022). That forbids what mixes positions in any
other way: spatial norms, pooling, plain 3x3 convolutions. Borders are zeros, because any other border
holds a copy of the pixel itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = (2, 3)  # of the two branches, in pixels
FULL_PATTERN = ((3, 2), (5, 3))  # of the full D-BSN: width of the masked kernel, step


class MaskedConv(nn.Conv2d):
    """Convolution without its centre tap; zero padding, same size. The stored centre weight has no effect."""

    mask: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, channels, width, padding=width // 2)
        mask = torch.ones(1, 1, width, width)
        mask[..., width // 2, width // 2] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)

    def folded(self) -> nn.Conv2d:
        """The same layer as a plain convolution with the mask in its weight, for export."""
        plain = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size, padding=self.padding)  # type: ignore[arg-type]
        plain.load_state_dict({"weight": self.weight * self.mask, "bias": self.bias})
        return plain.to(self.weight)


def pointwise(inside: int, outside: int) -> nn.Conv2d:
    """1x1 convolution."""
    return nn.Conv2d(inside, outside, 1)


def dilated(channels: int, width: int, step: int) -> nn.Conv2d:
    """Convolution, width x width taps at distances of `step` pixels, zero padding, same size."""
    return nn.Conv2d(channels, channels, width, padding=width // 2 * step, dilation=step)


class InceptionBlock(nn.Module):
    """Three dilated views (5x5, 3x3, 1x1) of x, joined and added to it (D-BSN)."""

    def __init__(self, channels: int, step: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(pointwise(channels, channels), nn.ReLU(), dilated(channels, 5, step), nn.ReLU())
        self.medium = nn.Sequential(pointwise(channels, channels), nn.ReLU(), dilated(channels, 3, step), nn.ReLU())
        self.point = nn.Sequential(pointwise(channels, channels), nn.ReLU())
        self.last = pointwise(3 * channels, channels)
        self.mix = nn.Sequential(pointwise(channels, channels), nn.ReLU(), pointwise(channels, channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        views = torch.cat([self.wide(x), self.medium(x), self.point(x)], dim=1)
        mixed: Tensor = self.mix(x + F.relu(self.last(views)))
        return mixed


class DilatedBlock(nn.Module):
    """x + 1x1(ReLU(dilated 3x3(x))) (the light D-BSN of AP-BSN)."""

    def __init__(self, channels: int, step: int) -> None:
        super().__init__()
        self.first = dilated(channels, 3, step)
        self.last = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.last(F.relu(self.first(x)))
        return x + change


def branch(channels: int, width: int, blocks: Sequence[nn.Module]) -> nn.Sequential:
    """Masked convolution, two 1x1, the blocks, one 1x1 without activation."""
    start = [MaskedConv(channels, width), nn.ReLU()]
    for _ in range(2):
        start += [pointwise(channels, channels), nn.ReLU()]
    return nn.Sequential(*start, *blocks, pointwise(channels, channels))


class BlindSpotNetwork(nn.Module):
    """Two branches of other steps, joined to features that give the mean and its variance.

    `forward` maps image (B, colours, H, W), any H and W from 1 up, to (mean, model_variance) of the same
    shape: what the neighbours say about each pixel, and the variance of that, at least `floor` (unit
    scale squared; published form: the square of the head's output). Position i of both outputs has
    derivative exactly 0 with respect to position i of the image (`models.networks.blindness` proves it).
    `radius`: pixels to each side that an output can depend on; None where that is the whole image.
    """

    def __init__(
        self,
        branches: Sequence[nn.Module],
        *,
        colours: int,
        channels: int,
        light: bool,
        floor: float,
        radius: int | None,
    ) -> None:
        super().__init__()
        activation = nn.ReLU() if light else nn.Identity()
        narrow = channels // 2 if light else channels
        self.floor, self.radius = floor, radius
        self.head = nn.Sequential(pointwise(colours, channels), nn.ReLU())
        self.branches = nn.ModuleList(nn.Sequential(each, activation) for each in branches)
        self.join = nn.Sequential(pointwise(2 * channels, channels), activation)
        self.tail = pointwise_stack(channels, narrow, colours)
        self.variance_head = pointwise_stack(channels, 16, colours)
        self.initialise()

    def initialise(self) -> None:
        """He et al.'s weights, blocks near the identity: the published defaults fade in 50 layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(last := getattr(module, "last", None), nn.Conv2d):
                    last.weight.mul_(0.1)
            self.tail[-1].weight.mul_(0.1)  # type: ignore[operator]
            self.variance_head[-1].weight.mul_(0.1)  # type: ignore[operator]
            self.variance_head[-1].bias.fill_(0.3)  # type: ignore[operator]  # for images of deviation 1

    def features(self, image: Tensor) -> Tensor:
        """What both outputs are made of: (B, channels, H, W), blind."""
        x = self.head(image)
        joined: Tensor = self.join(torch.cat([each(x) for each in self.branches], dim=1))
        return joined

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return self.tail(features), self.variance_head(features) ** 2 + self.floor

    def mean_parameters(self) -> int:
        """Parameters without the variance head: what the publications count."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("variance_head"))


def pointwise_stack(channels: int, narrow: int, outside: int) -> nn.Sequential:
    """1x1 to `narrow`, ReLU, 1x1, ReLU, 1x1 to `outside`: pixel by pixel."""
    layers = [pointwise(channels, narrow), nn.ReLU(), pointwise(narrow, narrow), nn.ReLU(), pointwise(narrow, outside)]
    return nn.Sequential(*layers)


class DilatedBlindSpot(BlindSpotNetwork):
    """The full D-BSN (Wu et al., 2020): 6,612,289 parameters in the mean path as published."""

    def __init__(self, channels: int = 96, modules: int = 8, colours: int = 1, floor: float = 1e-8) -> None:
        branches = [
            branch(channels, width, [InceptionBlock(channels, step) for _ in range(modules)])
            for width, step in FULL_PATTERN
        ]
        radius = max(width // 2 + 2 * step * modules for width, step in FULL_PATTERN)
        super().__init__(branches, colours=colours, channels=channels, light=False, floor=floor, radius=radius)


class LightBlindSpot(BlindSpotNetwork):
    """The light D-BSN of AP-BSN (Lee et al., 2022): 915,489 parameters in the mean path at 64 x 9."""

    def __init__(self, channels: int = 64, modules: int = 9, colours: int = 1, floor: float = 1e-8) -> None:
        branches = [
            branch(channels, 2 * step - 1, [DilatedBlock(channels, step) for _ in range(modules)]) for step in STEPS
        ]
        radius = max(step - 1 + step * modules for step in STEPS)
        super().__init__(branches, colours=colours, channels=channels, light=True, floor=floor, radius=radius)
