"""Bicubic resizing as MATLAB's `imresize` does it: what the field's benchmarks reduce and enlarge images with.

Keys' kernel with a = -0.5 (IEEE Trans. ASSP 29, 1981), widened by 1 / factor where it reduces; pixel areas
align; the image goes on mirrored, its outermost pixels repeated; the weights of every output sum to 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SUPPORT = 4  # pixels that the kernel spans


def cubic(x: Array) -> Array:
    """Keys' kernel with a = -0.5 at signed distances in pixels."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def contributions(length: int, factor: float) -> tuple[Array, NDArray[np.int64]]:
    """Weights and indices (ceil(factor * length), taps) of the input pixels that make each output pixel of a line."""
    shrink = min(factor, 1.0)
    width = SUPPORT / shrink
    centre = (np.arange(math.ceil(length * factor)) + 0.5) / factor - 0.5  # in input pixels, the first is 0
    taps = np.arange(math.ceil(width) + 2)
    indices = np.floor(centre[:, None] - width / 2).astype(np.int64) + taps
    weights = cubic(shrink * (centre[:, None] - indices))
    weights /= weights.sum(axis=1, keepdims=True)
    indices %= 2 * length  # mirrored with the edge repeated, as often as it takes
    return weights, np.minimum(indices, 2 * length - 1 - indices)


def imresize(image: NDArray[np.generic], factor: float) -> Array:
    """image (H, W) or (H, W, C) of any range as (ceil(factor * H), ceil(factor * W), ...), not rounded or clipped.

    Rows first, then columns, as MATLAB does where both have one factor. Raises ValueError for a factor that is not
    positive.
    """
    if not factor > 0:
        raise ValueError(f"imresize: a factor of {factor} is not positive")
    resized = image.astype(np.float64)
    for axis in (0, 1):
        line = np.moveaxis(resized, axis, 0)
        weights, indices = contributions(len(line), factor)
        spread = (slice(None), *(None,) * (line.ndim - 1))
        parts = (weights[:, tap][spread] * line[indices[:, tap]] for tap in range(weights.shape[1]))
        resized = np.moveaxis(sum(parts, np.zeros(())), 0, axis)
    return np.ascontiguousarray(resized)


def imresize_8bit(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """The same of an 8-bit image, rounded once at the end as by `im2double`, `imresize`, `im2uint8`."""
    return np.floor(np.clip(imresize(image, factor), 0, 255) + 0.5).astype(np.uint8)
