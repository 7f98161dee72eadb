"""Hand-made degradation of medical images: one blur, one reduction, noise as real images have it.

Kernels after Real-ESRGAN (Wang et al., 2021): Gaussian, generalised Gaussian and plateau-shaped, round or not. The
second pass, the ringing and the compression of that recipe belong to photographs from the internet.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import irfft2, rfft2

from training.data.noise import Kernel, Plane, Population, add_noise, clip_and_quantise
from training.degradation.bicubic import reduce_plane
from training.degradation.config import BlindConfig

Array = NDArray[np.float64]

REACH = 4.0  # of a shape's radius, beyond which it is cut off


@dataclass(frozen=True)
class BlindDegradation:
    """Blur, reduction and noise, each drawn anew for every crop."""

    config: BlindConfig
    scale: int
    population: Population

    def degrade(self, high: Plane, rng: np.random.Generator) -> Plane:
        """high (sH, sW), unit scale, as low (H, W)."""
        blurred = blur(high, draw_blur(self.config, self.scale, rng))
        low = reduce_plane(blurred, self.scale, "area" if rng.random() < self.config.area_share else "bicubic")
        if rng.random() >= self.config.clean_share:
            low = add_noise(low, self.population.draw(rng), rng)
        if rng.random() < self.config.clip_share:
            low = clip_and_quantise(low, 256 if rng.random() < self.config.quantise_share else None)
        if rng.random() < self.config.jpeg_share:
            lowest, highest = self.config.jpeg_quality
            low = compress(low, int(rng.integers(lowest, highest + 1)))
        return low.astype(np.float32, copy=False)


def draw_blur(config: BlindConfig, scale: int, rng: np.random.Generator) -> Kernel:
    """A blur kernel (K, K), K odd, sum 1, centred on its middle pixel: it shifts nothing."""
    widths = rng.uniform(config.narrowest, config.widest, size=2) * scale / 2
    if rng.random() < config.isotropic_share:
        widths[1] = widths[0]
    angle, shape = rng.uniform(0, math.pi), rng.random()
    if shape < config.generalised_share:
        return blur_kernel(widths, angle, "generalised", rng.uniform(*config.generalised_beta))
    if shape < config.generalised_share + config.plateau_share:
        return blur_kernel(widths, angle, "plateau", rng.uniform(*config.plateau_beta))
    return blur_kernel(widths, angle)


def blur_kernel(widths: Array, angle: float = 0.0, shape: str = "generalised", beta: float = 1.0) -> Kernel:
    """The kernel (K, K), sum 1, of standard deviations `widths` (2,) pixels along axes turned by `angle` radians.

    A "generalised" Gaussian is exp(-r^(2 beta) / 2), plain at beta 1; a "plateau" is 1 / (1 + r^(2 beta)).
    """
    half = math.ceil(REACH * float(np.max(widths)))
    down, across = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    first, second = (
        math.cos(angle) * down + math.sin(angle) * across,
        math.cos(angle) * across - math.sin(angle) * down,
    )
    radius = np.hypot(first / widths[0], second / widths[1]) * deviation(shape, round(beta, 3))
    kernel = profile(radius, shape, beta)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def profile(radius: Array, shape: str, beta: float) -> Array:
    """A shape's height at a radius; 0 beyond `REACH`."""
    power = radius ** (2 * beta)
    return np.where(radius <= REACH, np.exp(-power / 2) if shape == "generalised" else 1 / (1 + power), 0.0)


@lru_cache(maxsize=8192)
def deviation(shape: str, beta: float) -> float:
    """Standard deviation along an axis of a shape whose radius is not scaled."""
    radius = np.linspace(0, REACH, 400)
    height = profile(radius, shape, beta)
    return float(np.sqrt((height * radius**3).sum() / (2 * (height * radius).sum())))


def blur(plane: Plane, kernel: Kernel) -> Plane:
    """plane (H, W) filtered with a kernel (K, K), K odd; reflected at its edges."""
    half = kernel.shape[0] // 2
    padded = np.pad(plane, half, mode="symmetric")
    spectrum = rfft2(padded) * rfft2(kernel, s=padded.shape)
    # A circular convolution is exact where the kernel lies inside: all that is kept.
    filtered = irfft2(spectrum, s=padded.shape)[2 * half :, 2 * half :]
    return np.ascontiguousarray(filtered, dtype=np.float32)


def compress(plane: Plane, quality: int) -> Plane:
    """What JPEG of a quality (1 to 100) leaves of a plane (H, W) on the unit scale, as 8-bit grey."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.float32) / np.float32(255)
