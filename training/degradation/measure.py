"""What a learned degradation does, in numbers: its kernels' width and middle, its noise's level and colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.noise import Plane
from training.degradation.generator import DegradationGenerator
from training.degradation.learned import draw_latents
from training.seeds import sample_generator

Array = NDArray[np.float64]

DRAWS = 64
SIDE = 64  # of the low-resolution images that noise is drawn for
STREAM = 95_000_000


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of one degradation; noise and images are 64 x 64 low-resolution pixels, or as large as the planes allow."""

    kernels: Array  # (64, K, K)
    noise: Array  # (64, H, W)
    low: Plane  # (64, H, W): images, noise included


def measure_draws(generator: DegradationGenerator, high: Sequence[Plane], seed: int) -> dict[str, Any]:
    """Facts of 64 draws on crops of high-resolution planes.

    `moment`: the mean kernel's second moment in squared high-resolution pixels, the mean of both axes; `widths`: square
    roots of its covariance's eigenvalues; `moment_spread`: standard deviation of the single kernels' moments;
    `shift`: the mean kernel's centroid, rows and columns; `noise`: standard deviation on the unit scale, and its
    quantiles 0.1, 0.5, 0.9 over draws; `lag1`: its correlation with the neighbour down and across.
    """
    found = draw(generator, high, seed)
    kernels, noise = found.kernels, found.noise
    covariance = second_moments(kernels.mean(0))
    moments = [float(np.trace(second_moments(kernel)) / 2) for kernel in kernels]
    levels = noise.std(axis=(1, 2))
    beside = (noise[:, 1:] * noise[:, :-1]).mean(), (noise[:, :, 1:] * noise[:, :, :-1]).mean()
    return {
        "moment": float(np.trace(covariance) / 2),
        "widths": [float(w) for w in np.sqrt(np.linalg.eigvalsh(covariance))],
        "covariance": covariance.tolist(),
        "moment_spread": float(np.std(moments)),
        "shift": [float(c) for c in centroid(kernels.mean(0))],
        "noise": float(np.sqrt(np.mean(noise**2))),
        "noise_quantiles": [float(q) for q in np.quantile(levels, (0.1, 0.5, 0.9))],
        "lag1": [float(product / np.mean(noise**2)) for product in beside],
    }


@torch.no_grad()
def draw(generator: DegradationGenerator, high: Sequence[Plane], seed: int) -> Draws:
    """64 draws, each on a crop of one of the high-resolution planes."""
    kernels, noise, low = [], [], []
    side = min(SIDE, min(min(plane.shape) for plane in high) // generator.scale)
    for number in range(DRAWS):
        rng = sample_generator(seed + STREAM, 0, number)
        crop = draw_crop(high, side * generator.scale, rng)
        fake = generator(torch.from_numpy(crop)[None, None], draw_latents(1, (side, side), rng))
        kernels.append(fake.kernels[0].double().numpy())
        noise.append(fake.noise[0, 0].double().numpy())
        low.append(fake.low[0, 0].numpy())
    return Draws(np.stack(kernels), np.stack(noise), np.stack(low))


def draw_crop(planes: Sequence[Plane], side: int, rng: np.random.Generator) -> Plane:
    """A crop (side, side) anywhere in one of the planes."""
    plane = planes[int(rng.integers(len(planes)))]
    top, left = (int(rng.integers(length - side + 1)) for length in plane.shape)
    return np.array(plane[top : top + side, left : left + side], dtype=np.float32)


def centroid(kernel: Array) -> Array:
    """Centre of mass (2,), rows and columns from the middle, of a kernel (K, K) of sum 1."""
    place = np.arange(len(kernel)) - (len(kernel) - 1) / 2
    return np.array([kernel.sum(1) @ place, kernel.sum(0) @ place])


def second_moments(kernel: Array) -> Array:
    """Covariance (2, 2) of a kernel (K, K) of sum 1 about its centre of mass, squared pixels."""
    place = np.arange(len(kernel)) - (len(kernel) - 1) / 2
    grid = np.stack(np.meshgrid(place, place, indexing="ij")).reshape(2, -1)
    offset = grid - centroid(kernel)[:, None]
    return np.asarray((kernel.reshape(-1) * offset) @ offset.T)
