"""A degradation that is known: a Gaussian blur, a reduction and noise, as one kernel and one law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.noise import Kernel, NoiseLaw, Plane, add_noise
from training.degradation.generator import apply_kernels

Array = NDArray[np.float64]

REDUCTIONS = ("sampling", "area", "bicubic")
REACH = 5.0  # standard deviations at which a Gaussian is cut off


@dataclass(frozen=True)
class KnownDegradation:
    """Blur of standard deviations `widths` (down, across), in high-resolution pixels; then reduction; then noise.

    How a reduction samples belongs to what a learned kernel must find, since that maps high to low resolution in one
    step. `kernel` is therefore the Gaussian itself where the blurred image is only sampled ("sampling", at the middles
    of the low-resolution pixels), and the Gaussian convolved with a block of s x s pixels ("area") or with the
    anti-aliasing filter ("bicubic", a = -0.5) where these reduce it.
    """

    scale: int
    widths: tuple[float, float]
    reduction: str = "sampling"
    noise: float = 5.0 / 255  # standard deviation, unit scale
    colour: Kernel | None = None

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction: {self.reduction!r} is none of {', '.join(REDUCTIONS)}")

    @property
    def law(self) -> NoiseLaw:
        return NoiseLaw(0.0, self.noise**2, self.colour)

    @property
    def kernel(self) -> Array:
        """The whole path from high to low resolution without noise, (K, K), K of the scale's parity, sum 1."""
        profiles = [profile(width, self.scale, self.reduction) for width in self.widths]
        side = max(len(one) for one in profiles)
        down, across = (np.pad(one, (side - len(one)) // 2) for one in profiles)
        return np.outer(down, across)

    def degrade(self, high: Plane, rng: np.random.Generator) -> Plane:
        """high (sH, sW), or up to s - 1 pixels more, unit scale, as low (H, W)."""
        rows, columns = (side // self.scale * self.scale for side in high.shape)
        image = torch.from_numpy(np.ascontiguousarray(high[:rows, :columns]))[None, None]
        kernel = torch.from_numpy(self.kernel.astype(np.float32))[None]
        return add_noise(apply_kernels(image, kernel, self.scale)[0, 0].numpy(), self.law, rng)


def profile(width: float, scale: int, reduction: str) -> Array:
    """Blur and reduction along one axis, (K,), sum 1."""
    half = int(np.ceil(REACH * width))
    if reduction == "sampling":
        place = np.arange(2 * half + scale % 2) - half + (0.5 if scale % 2 == 0 else 0.0)
        return normalised(np.exp(-(place**2) / (2 * width**2)))
    gauss = normalised(np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * width**2)))
    if reduction == "area":
        return np.convolve(gauss, np.full(scale, 1 / scale))
    place = np.abs((np.arange(4 * scale) - (4 * scale - 1) / 2) / scale)
    return np.convolve(gauss, normalised(cubic(place)))


def cubic(distance: NDArray[np.floating]) -> Array:
    """Keys' interpolation kernel with a = -0.5 (1981)."""
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def normalised(weights: NDArray[np.floating]) -> Array:
    return np.asarray(weights / weights.sum(), dtype=np.float64)
