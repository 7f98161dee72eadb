"""How well an enlarged image, reduced again, agrees with what it was made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.imaging.image import Image, ValueMap
from models.imaging.values import strips

Array = np.ndarray[Any, Any]

A = -0.5  # of the cubic kernel (Keys 1981), as in MATLAB's `imresize`, Pillow and PyTorch with antialiasing
REACH = 2  # a reduced pixel is made of enlarged ones that lie within so many pixels of it
BEST_DB = 120.0  # stands for equality, too
FLOAT_STEPS = 2.0**16  # of the unit range: floating-point pixels have no step of their own


@dataclass(frozen=True)
class Agreement:
    """One frame beside its enlargement reduced again; levels on the unit scale, over pixels and planes."""

    judged: int  # samples of the image that were compared: measured ones, two pixels or more from padding
    power: float  # mean square of the difference
    largest: float  # of its magnitude
    extent: float  # of the frame's measured values, largest less smallest
    step: float  # of the stored type
    measured: bool = True  # whether any pixel of the frame is

    @property
    def decibels(self) -> float:
        """PSNR whose peak is the frame's own extent (at least one step), and `BEST_DB` at most; that where there is
        nothing to compare."""
        peak = max(self.extent, self.step) ** 2
        return min(BEST_DB, 10 * math.log10(peak / max(self.power, peak * 10 ** (-BEST_DB / 10))))

    @property
    def judgeable(self) -> bool:
        """Whether something was compared, or the frame holds nothing that could be: padding alone."""
        return self.judged > 0 or not self.measured

    def reaches(self, decibels: float) -> bool:
        """Whether it is that good; a difference of half a step (RMS) is rounding, however flat the frame is."""
        return self.judgeable and (self.decibels >= decibels or self.power <= (self.step / 2) ** 2)


def agreement(frame: Image, enlarged: Image, scale: int) -> Agreement:
    """Reduces `enlarged`, an image of one frame as it is stored, and compares it with `frame`, which it was made of.

    `frame.padding` is left out, and so are measured pixels whose enlargement is made of padding too. Works in bands
    of rows, in float64.
    """
    _, rows, columns, samples = frame.pixels.shape
    wanted = None if frame.padding is None else ~_spread(frame.padding[0], REACH)
    judged, power, largest = 0, 0.0, 0.0
    for band in strips(rows, columns * scale * scale):
        where = None if wanted is None else wanted[band]
        if where is not None and not where.any():
            continue
        for sample in range(samples):
            low = frame.pixels[0, band, :, sample] * np.float64(frame.values.scale)
            off = np.abs(reduced(enlarged.pixels[0, :, :, sample], scale, band, frame.values.scale) - low)
            off = off.ravel() if where is None else off[where]
            judged, power = judged + off.size, power + float(off @ off)
            largest = max(largest, float(off.max()))
    power = power / judged if judged else 0.0
    extent, measured = _extent(frame)
    return Agreement(judged, power, largest, extent, _step(frame.pixels.dtype, frame.values), measured)


def reduced(plane: Array, scale: int, rows: slice | None = None, gain: float = 1.0) -> Array:
    """`gain` times a plane (scale * R, scale * C) made `scale` times smaller, (R, C), or `rows` of it; float64.

    Anti-aliased bicubic interpolation (a = -0.5, the kernel stretched by the scale) at the centres of blocks of
    `scale` x `scale` pixels, that is aligned by pixel area. Beyond the edge there is nothing: the weights that are
    left add up to one. It is what training takes for bicubic reduction.
    """
    wanted = rows or slice(0, plane.shape[0] // scale)
    low, high = (wanted.start - REACH) * scale, (wanted.stop + REACH) * scale
    start = max(low, 0)
    band = plane[start : min(high, plane.shape[0])] * np.float64(gain)
    down = _along_rows(band, scale, wanted.start * scale - start, wanted.stop - wanted.start)
    return _along_rows(np.ascontiguousarray(down.T), scale, 0, plane.shape[1] // scale).T


def _along_rows(band: Array, scale: int, start: int, count: int) -> Array:
    """`count` rows, each made of those around `scale` rows of the band, which begin at row `start`."""
    total, share = np.zeros((count, *band.shape[1:])), np.zeros((count, 1))
    for tap, weight in enumerate(_taps(scale)):
        first = start + tap - (len(_taps(scale)) - scale) // 2  # row of the band that this tap of output 0 takes
        begin = max(0, -(first // scale)) if first < 0 else 0
        end = min(count, (len(band) - 1 - first) // scale + 1)
        if end > begin:
            total[begin:end] += weight * band[first + begin * scale : first + (end - 1) * scale + 1 : scale]
            share[begin:end] += weight
    total /= share
    return total


def _taps(scale: int) -> list[float]:
    """Weights of the 4 x scale pixels along one side that a reduced pixel is made of; they add up to one."""
    places = (np.arange(4 * scale) + 0.5) / scale - 2.0
    x = np.abs(places)
    near = (A + 2) * x**3 - (A + 3) * x**2 + 1
    far = A * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.where(x <= 1, near, far)
    return [float(weight) for weight in weights / weights.sum()]


def _spread(mask: Array, reach: int) -> Array:
    """Also true wherever the mask is within `reach` rows and columns."""
    for axis in (0, 1):
        wide = np.pad(mask, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)])
        size = mask.shape[axis]
        mask = np.logical_or.reduce([wide.take(range(n, n + size), axis) for n in range(2 * reach + 1)])
    return mask


def _extent(frame: Image) -> tuple[float, bool]:
    """Largest less smallest measured value, unit scale; and whether any pixel is measured."""
    pixels = frame.pixels[0] if frame.padding is None else frame.pixels[0][~frame.padding[0]]
    if not pixels.size:
        return 0.0, False
    scale = frame.values.scale
    return abs(float(pixels.max()) * scale - float(pixels.min()) * scale), True


def _step(type_: np.dtype[Any], values: ValueMap) -> float:
    """Smallest difference of stored values, unit scale."""
    return abs(values.scale) if np.issubdtype(type_, np.integer) else 1 / FLOAT_STEPS
