"""The degradation that is learned: y = (x * k(z)) reduced + n(y, z), one kernel and one noise field per image.

After Luo et al., "Learning the Degradation Distribution for Blind Image Super-Resolution" (2022), with three
differences that are properties of the networks and not hopes of the training: no statistic of the batch is used (a
batch of one is like any other), a kernel is the same turned by half (it shifts nothing), and noise has mean zero
(whatever the latent makes, its negative unmakes).
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL_LATENTS = 3
NOISE_LATENTS = 2  # fields of the image's size
COLOUR = 11  # rows of the filter that colours noise
NARROWEST, WIDEST = 0.35, 0.2  # standard deviation of a kernel: pixels; share of its rows
OBLONG = 3.0  # longer over shorter axis
HASTE = 4.0  # of the widths beside the other weights: Adam moves all alike, and much hangs on these three
FREEDOM = 0.5  # largest logarithm of a weight over the Gaussian's: a kernel has one peak, or images would have ghosts


class KernelNet(nn.Module):
    """A point-symmetric, positive blur kernel of sum 1 from a latent: p(k).

    The softmax of a Gaussian's logarithm, of any widths and direction, plus a free deviation. A few images tell how
    wide a blur is long before they tell its shape; training charges for the deviation, so it is there if needed.
    """

    place: Tensor  # (2, K^2): rows and columns from the middle

    def __init__(self, side: int, scale: int, features: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.side = side
        self.head = nn.Linear(KERNEL_LATENTS, features)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))
            for _ in range(blocks)
        )
        self.gauss, self.free = nn.Linear(features, 3), nn.Linear(features, side**2)
        for last in (self.gauss, self.free):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.widest = WIDEST * side
        place = torch.arange(side) - (side - 1) / 2
        self.register_buffer("place", torch.cartesian_prod(place, place).T, persistent=False)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """latent (B, 3), standard normal -> kernels (B, K, K), sum 1, centroid in the middle.

        And how far they are from one Gaussian, (): squares of the free part, over all pixels and over the kernel's
        mass, and the variance of the Gaussians themselves.
        """
        x = self.head(latent)
        for block in self.blocks:
            x = x + block(x)
        gauss, free = self.gauss(F.relu(x)), self.free(F.relu(x))
        free = FREEDOM * torch.tanh((free + free.flip(1)) / (2 * FREEDOM))  # turned by half, the same
        kernels = torch.softmax(free - self.distance(HASTE * gauss) / 2, 1)
        squares = free.square().mean() + (kernels * free.square()).sum(1).mean()
        return kernels.reshape(-1, self.side, self.side), squares + gauss.var(0, correction=0).mean()

    def distance(self, gauss: Tensor) -> Tensor:
        """Squared distances from the middle (B, K^2) in widths of Gaussians (B, 3): size, and two of direction.

        A logarithm of a covariance, so that any three numbers are one; the axes between 0.35 pixels and a fifth of the
        kernel, one at most three times the other: beyond, the grid would be what is seen.
        """
        straight, oblique = gauss[:, 1:2], gauss[:, 2:]
        stretch = torch.sqrt(straight**2 + oblique**2 + 1e-12)
        ratio = math.log(OBLONG) * torch.tanh(stretch)
        low, high = math.log(NARROWEST) + ratio / 2, math.log(self.widest) - ratio / 2
        size = low + (high - low) * torch.sigmoid(gauss[:, :1])
        rows, columns = self.place
        turned = straight * (rows**2 - columns**2) + 2 * oblique * rows * columns
        squares = torch.cosh(ratio) * (rows**2 + columns**2) - torch.sinh(ratio) / stretch * turned
        return cast(Tensor, torch.exp(-2 * size) * squares)


class NoiseNet(nn.Module):
    """Noise given the low-resolution image: p(n | y). A gain for level and signal, times a colour, times detail."""

    def __init__(self, features: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.first_gain, self.last_gain = nn.Conv2d(2, features, 1), nn.Conv2d(features, 1, 1)
        self.colour = nn.Conv2d(NOISE_LATENTS, 1, COLOUR, padding=COLOUR // 2, padding_mode="circular", bias=False)
        self.head = nn.Conv2d(1 + NOISE_LATENTS, features, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(features, features, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(features, features, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.tail = nn.Conv2d(features, 1, 1)
        with torch.no_grad():
            for last in (self.last_gain, self.tail, self.colour):
                for weight in last.parameters():
                    weight.zero_()
            self.colour.weight[0, 0, COLOUR // 2, COLOUR // 2] = 1.0
        self.start(0.02)

    def start(self, level: float) -> None:
        """Makes the noise white, of one standard deviation for all signals; for an untrained network."""
        with torch.no_grad():
            bias = self.last_gain.bias
            assert bias is not None
            bias.fill_(math.log(level))

    def forward(self, low: Tensor, latent: Tensor, level: Tensor) -> Tensor:
        """low (B, 1, H, W), latent (B, 2, H, W) and level (B, 1), both standard normal -> noise (B, 1, H, W).

        Its mean over the latent is 0 at every pixel, whatever the weights.
        """
        signal = F.avg_pool2d(low, 3, 1, 1, count_include_pad=False)
        told = torch.cat([signal, level[:, :, None, None].expand_as(signal)], 1)
        gain = self.last_gain(F.relu(self.first_gain(told)))
        detail = (self.detail(low, latent) - self.detail(low, -latent)) / 2
        return cast(Tensor, torch.exp(gain.clamp(-12, 2)) * (self.colour(latent) + detail))

    def detail(self, low: Tensor, latent: Tensor) -> Tensor:
        x = self.head(torch.cat([low, latent], 1))
        for block in self.blocks:
            x = x + block(x)
        return cast(Tensor, self.tail(F.relu(x)))


class Fake(NamedTuple):
    """What the generator makes of a batch of high-resolution images."""

    low: Tensor  # (B, 1, H, W): reduced + noise
    reduced: Tensor  # (B, 1, H, W), blurred and reduced, without noise
    noise: Tensor  # (B, 1, H, W)
    kernels: Tensor  # (B, K, K)
    deviation: Tensor  # (): of the kernels from one Gaussian
    contrast: Tensor  # (): log power of the low-resolution set's structures over the high-resolution set's


class Latents(NamedTuple):
    """What a batch of draws depends on; all standard normal."""

    kernel: Tensor  # (B, 3)
    noise: Tensor  # (B, 2, H, W)
    level: Tensor  # (B, 1): how noisy an image is among its like


class DegradationGenerator(nn.Module):
    """Kernel and noise networks together."""

    def __init__(self, scale: int, side: int) -> None:
        """`side`: rows of the kernel, even where the scale is, so that its middle is a low-resolution pixel's."""
        super().__init__()
        if side % 2 != scale % 2 or side < scale:
            raise ValueError(f"a kernel of {side} rows cannot be centred on the pixels of a reduction by {scale}")
        self.scale, self.side = scale, side
        self.kernel = KernelNet(side, scale)
        self.noise = NoiseNet()
        self.contrast = nn.Parameter(torch.zeros(()))  # no part of a draw; the sets' spectra are compared up to it

    def forward(self, high: Tensor, latents: Latents) -> Fake:
        """high (B, 1, sH, sW), unit scale; the noise is told the reduced image, and does not teach the kernel."""
        kernels, deviation = self.kernel(latents.kernel)
        reduced = apply_kernels(high, kernels, self.scale)
        noise = self.noise(reduced.detach(), latents.noise, latents.level)
        return Fake(reduced + noise, reduced, noise, kernels, deviation, self.contrast)


def apply_kernels(high: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """high (B, 1, sH, sW) filtered with its image's kernel (B, K, K) at every low-resolution pixel: (B, 1, H, W).

    The kernel's middle lies on the middle of the scale x scale pixels that become one; edges are replicated.
    """
    margin = (kernels.shape[-1] - scale) // 2
    padded = F.pad(high, (margin,) * 4, mode="replicate").transpose(0, 1)  # (1, B, ...): a group for every image
    return F.conv2d(padded, kernels[:, None], stride=scale, groups=len(kernels)).transpose(0, 1)
