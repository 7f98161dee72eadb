"""CNN_est: the published noise model of D-BSN, five 1x1 convolutions (Wu et al., 2020).

It has no spatial support: it maps a signal level to a variance, or sees the histogram of an image and
no more. Kept as the baseline of `NoiseLevel`, and as stage 1's noise function of a whole training set.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.denoiser import COLOUR, local_mean
from models.networks.noise_level import FLOOR

LAWS = {  # what an image's outputs are: number, and the power of the signal that the first is multiplied by
    "gaussian": (1, 0),  # b
    "poisson-gaussian": (2, 1),  # a s + b
    "affine-std": (2, 2),  # (sigma_s s)^2 + sigma_c^2
    "pixelwise": (1, 0),  # any function of the signal, learnt for the whole training set
}
SHIFT, SMALLEST = 4.0, 1e-3  # a standard deviation is softplus(output - 4) + 1e-3: at the start 0.019, about 5/255
NUDGE = 3e-4  # the published constant on the zero-initialised output


class CnnEstimate(nn.Module):
    """The variance of the noise at a given signal, under one of four laws (`LAWS`).

    865 parameters at 16 channels and 3,265 at 32, as published, for the laws with one output.
    """

    def __init__(self, channels: int = 16, law: str = "gaussian") -> None:
        super().__init__()
        if law not in LAWS:
            raise ValueError(f"no law {law!r}; known: {', '.join(LAWS)}")
        self.law = law
        outputs, self.power = LAWS[law]
        widths = [1, *[channels] * 4]
        self.body = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(channels, outputs, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def output(self, image: Tensor) -> Tensor:
        """image (B, 1, H, W) -> the raw outputs (B, 1 or 2, H, W), one per pixel."""
        x = image
        for conv in self.body:
            x = F.relu(conv(x))
        last: Tensor = self.last(x)
        return last + NUDGE

    def variance(self, image: Tensor, signal: Tensor) -> Tensor:
        """Variance of the noise (B, 1, H, W) where the noise-free signal is `signal` (B, 1, H, W).

        The same function in training and in use. "pixelwise" looks at the signal alone; the other laws
        average their outputs over the `image` (B, 1, h, w) and give one noise function for each.
        """
        raw = self.output(signal) if self.law == "pixelwise" else self.output(image).mean(dim=(2, 3), keepdim=True)
        part = (F.softplus(raw - SHIFT) + SMALLEST) ** 2
        if part.shape[1] == 1:
            return part.expand_as(signal)
        return part[:, :1] * F.relu(signal) ** self.power + part[:, 1:]

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 1, H, W) -> parameters (B, 7) as `NoiseLevel` gives them; the colour is taken for white.

        The line is fitted to the variance at the pixels' signals by least squares: exact for the
        laws that are lines.
        """
        signal = local_mean(image)
        variance = self.variance(image, signal)
        level, centre = variance.mean(dim=(1, 2, 3)), signal.mean(dim=(1, 2, 3))
        deviation = signal - centre[:, None, None, None]
        spread = (deviation**2).mean(dim=(1, 2, 3))
        slope = (deviation * variance).mean(dim=(1, 2, 3)) / (spread + 1e-12)
        white = torch.zeros_like(level)
        return torch.stack([slope, level - slope * centre, FLOOR * level, *[white] * len(COLOUR)], dim=1)
