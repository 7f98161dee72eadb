"""Noise on the unit scale: the laws that training and evaluation draw from.

The only place that puts noise on an image. Variance at signal x is slope * x + offset
(Poisson-Gaussian); a kernel colours it; magnitude images (MR) have Rician noise; clipping and
quantisation come afterwards, as in a scanner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2

Plane = NDArray[np.float32]
Kernel = NDArray[np.float32]  # (K, K), K odd, sum of squares 1

LAGS = ((1, 0), (0, 1), (2, 0), (0, 2))  # rows down, columns across: the correlations a network is told
KERNEL_SIDE = 15
SPECTRUM_SIDE = 32  # grid on which a drawn spectrum becomes a kernel


@dataclass(frozen=True)
class NoiseLaw:
    """One image's noise: Gaussian with variance max(slope x + offset, 0) at signal x.

    `kernel` colours it; None is white noise. `rician`: the magnitude of a complex signal whose two
    parts carry that noise each (Gudbjartsson and Patz, 1995).
    """

    slope: float
    offset: float
    kernel: Kernel | None = None
    rician: bool = False

    @property
    def parameters(self) -> Plane:
        """The parameters that `models.networks.denoiser` takes, shape (7,)."""
        return np.array([self.slope, self.offset, 0.0, *correlations(self.kernel)], dtype=np.float32)


class Population(Protocol):
    """What noise a training run meets."""

    def draw(self, rng: np.random.Generator) -> NoiseLaw: ...


@dataclass(frozen=True)
class NoisePopulation:
    """A broad population, of no scanner in particular; levels are standard deviations on the unit scale.

    Levels are drawn log-uniformly from `lowest` to `highest` with probability `log_share`, else
    uniformly. A share `poisson_share` of images has part of its variance growing with the signal, a
    share `coloured_share` is spatially correlated, with a spectrum drawn by `draw_kernel`.
    """

    lowest: float = 0.5 / 255
    highest: float = 75 / 255
    log_share: float = 0.5
    poisson_share: float = 0.3
    coloured_share: float = 0.0
    rician_share: float = 0.0

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
        kernel = draw_kernel(rng) if rng.random() < self.coloured_share else None
        rician = bool(rng.random() < self.rician_share)
        return NoiseLaw(2 * share * sigma**2, (1 - share) * sigma**2, kernel, rician)


def draw_kernel(rng: np.random.Generator) -> Kernel:
    """A kernel of the kinds that scanners make, separately wide down and across.

    Gaussian blur (apodisation, interpolation, scatter), in half of the draws times a band limit
    (zero-filled MR, resampling) or times a ramp (filtered back-projection, which starves the low
    frequencies and makes correlations at two pixels' distance negative).
    """
    down, across = np.meshgrid(
        np.fft.fftfreq(SPECTRUM_SIDE), np.fft.fftfreq(SPECTRUM_SIDE), indexing="ij"
    )  # cycles per pixel
    blur = rng.uniform(0.0, 1.3, size=2) if rng.random() < 0.5 else np.full(2, rng.uniform(0.0, 1.3))
    amplitude = np.exp(-2 * np.pi**2 * ((blur[0] * down) ** 2 + (blur[1] * across) ** 2))
    kind = rng.random()
    if kind < 0.25:
        limits = rng.uniform(0.25, 0.55, size=2)
        amplitude *= (np.abs(down) <= limits[0]) & (np.abs(across) <= limits[1])
    elif kind < 0.5:
        amplitude *= (np.hypot(down, across) + rng.uniform(0.01, 0.2)) ** rng.uniform(0.2, 1.0)
    return kernel_of_amplitude(amplitude)


def kernel_of_amplitude(amplitude: NDArray[np.float64]) -> Kernel:
    """The zero-phase kernel (15, 15) of an amplitude spectrum (N, N), frequency 0 first, N > 15; unit energy."""
    full = np.fft.fftshift(np.fft.ifft2(amplitude).real)
    centre, half = amplitude.shape[0] // 2, KERNEL_SIDE // 2
    kernel = full[centre - half : centre + half + 1, centre - half : centre + half + 1]
    return (kernel / np.sqrt((kernel**2).sum())).astype(np.float32)


def kernel_correlation(kernel: Kernel, down: int, across: int) -> float:
    """Correlation of the noise that a kernel makes, at `down` rows and `across` (>= 0) columns apart."""
    rows, columns = kernel.shape
    if abs(down) >= rows or abs(across) >= columns:
        return 0.0
    if down < 0:
        return kernel_correlation(kernel[::-1], -down, across)
    return float((kernel[down:, across:] * kernel[: rows - down, : columns - across]).sum() / (kernel**2).sum())


def correlations(kernel: Kernel | None) -> list[float]:
    """The correlations at `LAGS`; zeros for white noise."""
    return [0.0 if kernel is None else kernel_correlation(kernel, *lag) for lag in LAGS]


def unit_noise(shape: tuple[int, int], kernel: Kernel | None, rng: np.random.Generator) -> Plane:
    """Gaussian noise (H, W) of mean 0 and variance 1, coloured by the kernel."""
    if kernel is None:
        return rng.standard_normal(shape, dtype=np.float32)
    size = (shape[0] + kernel.shape[0] - 1, shape[1] + kernel.shape[1] - 1)
    white = rng.standard_normal(size, dtype=np.float32)
    # A circular convolution of this size is exact where the kernel lies inside: all that is kept.
    noise = irfft2(rfft2(white) * rfft2(kernel.astype(np.float32), s=size), s=size)
    return np.ascontiguousarray(noise[kernel.shape[0] - 1 :, kernel.shape[1] - 1 :], dtype=np.float32)


def add_noise(clean: Plane, law: NoiseLaw, rng: np.random.Generator) -> Plane:
    """clean (H, W) on the unit scale plus noise of that law; neither clipped nor quantised."""
    deviation = np.sqrt(np.maximum(law.slope * clean + law.offset, 0.0), dtype=np.float32)
    noisy = clean + deviation * unit_noise(clean.shape, law.kernel, rng)
    if law.rician:
        noisy = np.hypot(noisy, deviation * unit_noise(clean.shape, law.kernel, rng))
    return noisy


def clip_and_quantise(noisy: Plane, levels: int | None) -> Plane:
    """What an unsigned format keeps: clipped to [0, 1], and rounded to `levels` steps if given."""
    clipped = np.clip(noisy, 0.0, 1.0)
    return clipped if levels is None else np.rint(clipped * (levels - 1)) / np.float32(levels - 1)
