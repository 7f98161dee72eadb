"""Noise on the unit scale: the laws that training and evaluation draw from.

The only place that puts noise on an image. Variance at signal x is slope * x + offset
(Poisson-Gaussian); `kernel` colours it; clipping and quantisation come afterwards, as in a scanner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class NoiseLaw:
    """One image's noise: Gaussian with variance max(slope x + offset, 0) at signal x.

    `blur` is the standard deviation in pixels, down and across, of the Gaussian that colours the
    noise; (0, 0) is white noise.
    """

    slope: float
    offset: float
    blur: tuple[float, float] = (0.0, 0.0)

    @property
    def parameters(self) -> Plane:
        """The three parameters that `models.networks.denoiser` takes, shape (3,)."""
        return np.array([self.slope, self.offset, 0.0], dtype=np.float32)


@dataclass(frozen=True)
class NoisePopulation:
    """What noise a training run meets; levels are standard deviations on the unit scale.

    Levels are drawn log-uniformly from `lowest` to `highest` with probability `log_share`, else
    uniformly. A share `poisson_share` of images has part of its variance growing with the signal, a
    share `coloured_share` is spatially correlated.
    """

    lowest: float = 0.5 / 255
    highest: float = 75 / 255
    log_share: float = 0.5
    poisson_share: float = 0.3
    coloured_share: float = 0.0
    widest_blur: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.highest:
            raise ValueError(
                f"noise: lowest {self.lowest} and highest {self.highest} must satisfy 0 < lowest <= highest"
            )

    def draw(self, rng: np.random.Generator) -> NoiseLaw:
        """One image's law."""
        if rng.random() < self.log_share:
            sigma = float(np.exp(rng.uniform(np.log(self.lowest), np.log(self.highest))))
        else:
            sigma = rng.uniform(self.lowest, self.highest)
        # At mid-grey the variance is sigma^2 however it is split between the two terms.
        share = rng.uniform(0.0, 0.95) if rng.random() < self.poisson_share else 0.0
        blur = (0.0, 0.0)
        if rng.random() < self.coloured_share:
            blur = (rng.uniform(0.3, self.widest_blur), rng.uniform(0.3, self.widest_blur))
        return NoiseLaw(slope=2 * share * sigma**2, offset=(1 - share) * sigma**2, blur=blur)


def gaussian_taps(sigma: float) -> Plane:
    """Odd-length Gaussian weights, scaled to unit energy, so that filtered noise keeps variance 1."""
    radius = max(1, int(np.ceil(3 * sigma)))
    offsets = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    return (taps / np.sqrt((taps**2).sum())).astype(np.float32)


def unit_noise(shape: tuple[int, int], blur: tuple[float, float], rng: np.random.Generator) -> Plane:
    """Gaussian noise of unit variance, coloured along each axis (rows, columns) where blur > 0."""
    taps = [gaussian_taps(sigma) if sigma > 0 else None for sigma in blur]
    margins = [0 if t is None else len(t) - 1 for t in taps]
    noise = rng.standard_normal((shape[0] + margins[0], shape[1] + margins[1]), dtype=np.float32)
    for axis, kernel in enumerate(taps):
        if kernel is not None:
            windows = np.lib.stride_tricks.sliding_window_view(noise, len(kernel), axis=axis)
            noise = (windows @ kernel).astype(np.float32)
    return noise


def add_noise(clean: Plane, law: NoiseLaw, rng: np.random.Generator) -> Plane:
    """clean (H, W) on the unit scale plus noise of that law; neither clipped nor quantised."""
    deviation = np.sqrt(np.maximum(law.slope * clean + law.offset, 0.0), dtype=np.float32)
    return clean + deviation * unit_noise(clean.shape, law.blur, rng)


def clip_and_quantise(noisy: Plane, levels: int | None) -> Plane:
    """What an unsigned format keeps: clipped to [0, 1], and rounded to `levels` steps if given."""
    clipped = np.clip(noisy, 0.0, 1.0)
    return clipped if levels is None else np.rint(clipped * (levels - 1)) / np.float32(levels - 1)
