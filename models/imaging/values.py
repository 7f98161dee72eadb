"""Between stored pixel values and the networks' unit scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from models.imaging.image import Image, ValueMap

Array = np.ndarray[Any, Any]

SMOOTHING = 2  # passes over padding, per cell size
STRIP_PIXELS = 2**18  # worked at one time where float64 is wanted of every pixel, but never of all at once
BAND_PIXELS = 16 * 1024  # worked at one time, so that what lies between stays in the processor's cache
EXPONENT_MAX = 1000  # of a float scale, so that its inverse is finite too


def integer_values(dtype: np.dtype[Any], inverted: bool = False) -> ValueMap:
    """Maps the whole range of an integer type onto [0, 1]; `inverted` where the smallest value is white."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    sign = -1.0 if inverted else 1.0
    return ValueMap(scale=sign / (high - low), offset=(high if inverted else -low) / (high - low))


def float_values(pixels: Array, inverted: bool = False) -> ValueMap:
    """Scales floating-point pixels by the power of two that brings the largest magnitude into [0.5, 1).

    A power of two loses no bit, and the networks answer alike at any gain, so the choice is free. It
    ends at 2^1000 either way; an image of zeros has scale 1.
    """
    largest = float(np.abs(pixels).max(initial=0.0))
    exponent = min(max(math.frexp(largest)[1], -EXPONENT_MAX), EXPONENT_MAX) if largest else 0
    return ValueMap(scale=math.ldexp(-1.0 if inverted else 1.0, -exponent), offset=0.0, unit="float value")


def strips(rows: int, columns: int, pixels: int = STRIP_PIXELS) -> Iterator[slice]:
    """Consecutive slices over all rows, each of about so many pixels."""
    step = max(1, pixels // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def to_unit(image: Image) -> Array:
    """The image on the unit scale: (frames, samples, rows, columns), float32.

    Computed in float64 and rounded once. Padding pixels take a smooth continuation of the measured
    pixels around them, so that a network sees no cliff; in a frame without measured pixels they are 0.
    """
    frames, rows, columns, samples = image.pixels.shape
    unit = np.empty((frames, samples, rows, columns), np.float32)
    for index in range(frames):
        if image.padding is not None and image.padding[index].any():
            for sample, plane in enumerate(_exact(image.pixels[index], image.values)):
                unit[index, sample] = fill(plane, image.padding[index])
            continue
        for strip in strips(rows, columns):
            unit[index, :, strip] = _exact(image.pixels[index, strip], image.values)
    return unit


def from_unit(unit: Array, image: Image, scale: int = 1) -> tuple[Image, int]:
    """Puts an answer of the networks back into the image's stored type.

    `unit` is (frames, samples, scale * rows, scale * columns) on the unit scale. Values are rounded
    to the stored type and held within [image.minimum, image.maximum]; the second result counts the
    samples that had to be. At scale 1 the *change* is applied to the stored value, so no change is
    bit-exact for every type. Padding pixels come back as they were (repeated under a larger scale),
    and no measured pixel ends among the padding values. Raises FloatingPointError for NaN or infinity.
    """
    padding = None if image.padding is None else _repeat(image.padding, scale, 1)
    frames, samples, rows, columns = unit.shape
    pixels = np.empty((frames, rows, columns, samples), image.pixels.dtype)
    clipped = 0
    for index in range(frames):
        forbidden = _padding_range(image, index)
        for strip in strips(image.pixels.shape[1], columns * scale, BAND_PIXELS):
            stored, band = image.pixels[index, strip], slice(strip.start * scale, strip.stop * scale)
            if not np.isfinite(unit[index, :, band]).all():
                raise FloatingPointError("the network's answer holds NaN or infinity")
            value = _stored_value(unit[index, :, band], stored, scale, image.values)
            mask = None if padding is None else padding[index, band]
            pixels[index, band], cut = _fit(value, _repeat(stored, scale), mask, image, forbidden)
            clipped += cut
    return image.with_pixels(pixels, scale, padding), clipped


def _exact(stored: Array, values: ValueMap) -> Array:
    """Stored values (rows, columns, samples) on the unit scale: (samples, rows, columns), float64."""
    plane = np.moveaxis(stored, -1, 0) * np.float64(values.scale)
    plane += values.offset
    return plane


def fill(plane: Array, mask: Array) -> Array:
    """A plane (rows, columns), float64, with masked pixels replaced by the mean of measured pixels near them.

    Pull-push interpolation (Gortler et al., The Lumigraph, 1996, section 3.4): an empty cell takes
    the mean of the smallest enclosing cell of 2^n x 2^n pixels that holds any measured pixel. Empty
    cells are smoothed at every size, so that the filling meets measured pixels without a step.
    """
    if mask.all():
        return np.zeros_like(plane)
    return np.where(mask, _cell_means(np.where(mask, 0.0, plane), (~mask).astype(np.float64)), plane)


def _cell_means(total: Array, weight: Array) -> Array:
    if weight.all():
        return np.asarray(total / weight)
    coarse = _cell_means(_sum_cells(total), _sum_cells(weight))
    means = coarse.repeat(2, 0).repeat(2, 1)[: total.shape[0], : total.shape[1]].copy()
    np.divide(total, weight, out=means, where=weight > 0)
    empty = np.nonzero(weight == 0)
    for _ in range(SMOOTHING):
        means[empty] = _blurred(means, *empty)
    return means


def _sum_cells(plane: Array) -> Array:
    rows, columns = plane.shape
    even = np.pad(plane, ((0, rows % 2), (0, columns % 2)))
    return np.asarray(even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).sum((1, 3)))


def _blurred(plane: Array, rows: Array, columns: Array) -> Array:
    """Binomial means over 3 x 3 cells around the given ones, borders repeated."""
    wide = np.pad(plane, 1, "edge")
    taps = [(down, across) for down in range(3) for across in range(3)]
    weighted = [(2 - abs(d - 1)) * (2 - abs(a - 1)) * wide[rows + d, columns + a] for d, a in taps]
    return np.asarray(sum(weighted) / 16)


def _repeat(array: Array, scale: int, axis: int = 0) -> Array:
    """Each pixel of (rows, columns, ...) `scale` times along rows and columns; rows are the given axis."""
    return array if scale == 1 else array.repeat(scale, axis).repeat(scale, axis + 1)


def _padding_range(image: Image, index: int) -> tuple[Any, Any] | None:
    """Smallest and largest stored value of one frame's padding; None where it has none."""
    if image.padding is None or not image.padding[index].any():
        return None
    values = image.pixels[index][image.padding[index]]
    return values.min(), values.max()


def _stored_value(unit: Array, stored: Array, scale: int, values: ValueMap) -> Array:
    """Exact stored values in float64, (rows, columns, samples), before rounding; see `from_unit`."""
    value = unit.astype(np.float64)
    with np.errstate(over="ignore"):  # an overflow becomes infinite here and is held to the maximum later
        value -= _exact(stored, values).astype(np.float32) if scale == 1 else values.offset
        value /= values.scale
        value = np.moveaxis(value, 0, -1)
        if scale == 1:
            value += stored
    return value


def _fit(
    value: Array, stored: Array, mask: Array | None, image: Image, forbidden: tuple[Any, Any] | None
) -> tuple[Array, int]:
    """Rounds and limits values, keeps what did not change and what is padding; counts limited samples.

    Changes `value`. No measured pixel ends in the range `forbidden`, the padding's.
    """
    if np.issubdtype(stored.dtype, np.integer):
        np.rint(value, out=value)
    kept = value == stored
    if mask is not None:
        kept |= mask[..., None]
    limited = np.clip(value, image.minimum, image.maximum)
    clipped = int(np.count_nonzero((limited != value) & ~kept))
    fitted = limited.astype(stored.dtype)
    if forbidden is not None:
        fitted = _leave_padding(fitted, stored, *forbidden)
    np.copyto(fitted, stored, where=kept)
    return fitted, clipped


def _leave_padding(fitted: Array, stored: Array, low: Any, high: Any) -> Array:
    """Moves pixels that fell among the padding's values, `low` to `high`, to the nearest on the side they came from."""
    if np.issubdtype(stored.dtype, np.integer):
        below, above = np.int64(low) - 1, np.int64(high) + 1  # wider than any stored type, which may end there
    else:
        with np.errstate(over="ignore"):  # beside the largest finite value; nothing comes from beyond it
            below, above = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    fell = (fitted >= low) & (fitted <= high)
    fitted = np.where(fell & (stored > high), above, fitted)
    return np.where(fell & (stored < low), below, fitted).astype(stored.dtype)
