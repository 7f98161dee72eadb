"""Between stored pixel values and the networks' unit scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from models.imaging.image import Image, ValueMap

Array = np.ndarray[Any, Any]

SMOOTHING = 2  # passes over padding, per cell size
STRIP_PIXELS = 2**18  # worked at one time: float64 is wanted of every pixel, but never of all pixels at once
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


def strips(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices over all rows, each of about `STRIP_PIXELS` pixels."""
    step = max(1, STRIP_PIXELS // columns)
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
            for sample, plane in enumerate(_exact(image, index)):
                unit[index, sample] = fill(plane, image.padding[index])
            continue
        for strip in strips(rows, columns):
            unit[index, :, strip] = _exact(image, index, strip)
    return unit


def from_unit(unit: Array, image: Image, scale: int = 1) -> tuple[Image, int]:
    """Puts an answer of the networks back into the image's stored type.

    `unit` is (frames, samples, scale * rows, scale * columns) on the unit scale. Values are rounded
    to the stored type and held within [image.minimum, image.maximum]; the second result counts the
    samples that had to be. At scale 1 the *change* is applied to the stored value, so no change is
    bit-exact for every type. Padding pixels come back as they were (repeated under a larger scale),
    and no measured pixel ends among the padding values. Raises FloatingPointError for NaN or infinity.
    """
    padding = None if image.padding is None else _repeat(image.padding, scale)
    frames, samples, rows, columns = unit.shape
    pixels = np.empty((frames, rows, columns, samples), image.pixels.dtype)
    clipped = 0
    for index in range(frames):
        span = _padding_span(image, index)
        for strip in strips(*image.pixels.shape[1:3]):
            wide = slice(strip.start * scale, strip.stop * scale)
            part = unit[index, :, wide]
            if not np.isfinite(part).all():
                raise FloatingPointError("the network's answer holds NaN or infinity")
            stored = _repeat(image.pixels[index : index + 1, strip], scale)[0]
            before = _exact(image, index, strip).astype(np.float32) if scale == 1 else None
            value = _stored_value(part.astype(np.float64), before, stored, image.values)
            mask = None if padding is None else padding[index, wide]
            pixels[index, wide], cut = _fit(value, stored, mask, span, image)
            clipped += cut
    return image.with_pixels(pixels, scale, padding), clipped


def _exact(image: Image, index: int, strip: slice = slice(None)) -> Array:
    """Some rows of one frame on the unit scale, (samples, rows, columns), float64, padding as stored."""
    plane = np.moveaxis(image.pixels[index, strip], -1, 0) * np.float64(image.values.scale)
    plane += image.values.offset
    return np.asarray(plane)


def _padding_span(image: Image, index: int) -> tuple[Any, Any] | None:
    """Smallest and largest stored value of a frame's padding pixels; None where it has none."""
    if image.padding is None or not image.padding[index].any():
        return None
    values = image.pixels[index][image.padding[index]]
    return values.min(), values.max()


def fill(plane: Array, mask: Array) -> Array:
    """A plane (rows, columns), float64, with masked pixels replaced by the mean of measured pixels near them.

    Pull-push interpolation (Gortler et al., The Lumigraph, 1996, section 3.4): an empty cell takes
    the mean of the smallest enclosing cell of 2^n x 2^n pixels that holds any measured pixel. Empty
    cells are smoothed at every size, so that the filling meets measured pixels without a step.
    """
    if mask.all():
        return np.zeros_like(plane)
    coarse = _cell_means(_sum_cells(np.where(mask, 0.0, plane)), _sum_cells((~mask).astype(np.float64)))
    return _interpolated(plane, mask, coarse)


def _cell_means(total: Array, weight: Array) -> Array:
    if weight.all():
        return np.asarray(total / weight)
    coarse = _cell_means(_sum_cells(total), _sum_cells(weight))
    means = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return _interpolated(means, weight == 0, coarse)


def _interpolated(plane: Array, empty: Array, coarse: Array) -> Array:
    """`plane` with its empty cells taken from cells twice as large, then smoothed."""
    filled, places = plane.copy(), np.flatnonzero(empty)
    for part in _parts(places):
        rows, columns = np.divmod(part, plane.shape[1])
        filled[rows, columns] = coarse[rows // 2, columns // 2]
    for _ in range(SMOOTHING):
        wide = np.pad(filled, 1, "edge")
        for part in _parts(places):
            rows, columns = np.divmod(part, plane.shape[1])
            filled[rows, columns] = _blurred(wide, rows, columns)
    return filled


def _parts(places: Array) -> Iterator[Array]:
    return (places[start : start + STRIP_PIXELS] for start in range(0, len(places), STRIP_PIXELS))


def _sum_cells(plane: Array) -> Array:
    rows, columns = plane.shape
    even = np.pad(plane, ((0, rows % 2), (0, columns % 2))) if rows % 2 or columns % 2 else plane
    return np.asarray(even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).sum((1, 3)))


def _blurred(wide: Array, rows: Array, columns: Array) -> Array:
    """Binomial means over 3 x 3 cells around the given ones; `wide` has one cell more on every side."""
    taps = [(down, across) for down in range(3) for across in range(3)]
    weighted = [(2 - abs(d - 1)) * (2 - abs(a - 1)) * wide[rows + d, columns + a] for d, a in taps]
    return np.asarray(sum(weighted) / 16)


def _repeat(array: Array, scale: int) -> Array:
    """Each pixel of (frames, rows, columns, ...) `scale` times along rows and columns."""
    return array if scale == 1 else array.repeat(scale, 1).repeat(scale, 2)


def _stored_value(unit: Array, before: Array | None, stored: Array, values: ValueMap) -> Array:
    """Exact stored values in float64, (rows, columns, samples), before rounding; see `from_unit`."""
    with np.errstate(over="ignore"):  # an overflow becomes infinite here and is held to the maximum later
        if before is None:
            return np.moveaxis((unit - values.offset) / values.scale, 0, -1)
        return np.asarray(stored + np.moveaxis((unit - before) / values.scale, 0, -1))


def _fit(
    value: Array, stored: Array, mask: Array | None, span: tuple[Any, Any] | None, image: Image
) -> tuple[Array, int]:
    """Rounds and limits values, keeps what did not change and what is padding; counts limited samples.

    `span` are the smallest and largest padding value of the whole frame."""
    integer = np.issubdtype(stored.dtype, np.integer)
    rounded = np.rint(value) if integer else value
    kept = np.zeros(stored.shape[:2], bool) if mask is None else mask
    kept = kept[..., None] | (rounded == stored)
    outside = ~kept & ((rounded < image.minimum) | (rounded > image.maximum))
    fitted = np.clip(rounded, image.minimum, image.maximum).astype(stored.dtype)
    if span is not None:
        fitted = _leave_padding(fitted, stored, *span)
    return np.where(kept, stored, fitted), int(np.count_nonzero(outside))


def _leave_padding(fitted: Array, stored: Array, low: Any, high: Any) -> Array:
    """Moves pixels that fell among the padding values to the nearest value on the side they came from."""
    if np.issubdtype(stored.dtype, np.integer):
        below, above = np.int64(low) - 1, np.int64(high) + 1  # wider than any stored type, which may end there
    else:
        with np.errstate(over="ignore"):  # beside the largest finite value; nothing comes from beyond it
            below, above = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    fell = (fitted >= low) & (fitted <= high)
    fitted = np.where(fell & (stored > high), above, fitted)
    return np.where(fell & (stored < low), below, fitted).astype(stored.dtype)
