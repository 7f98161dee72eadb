"""What the raster formats (PNG, TIFF, JPEG, NPY) have in common: checks, and the making of an `Image`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.errors import CorruptImage, ImageTooLarge, NonFinitePixels, UnsupportedImage
from models.imaging.image import Image, Limits
from models.imaging.values import float_values, integer_values

Array = np.ndarray[Any, Any]

DTYPES = ("uint8", "int8", "uint16", "int16", "float32", "float64")
INCH_MM = 25.4


@dataclass(frozen=True)
class RasterSource:
    """What a raster file held beside pixels and is given back on encoding; all else is dropped.

    Text, comments, dates and camera data are dropped on purpose: they may name a patient.
    """

    icc: bytes | None = None  # colour profile
    chunks: tuple[tuple[bytes, bytes], ...] = ()  # PNG colour description: type and content
    compressed: bool = False  # TIFF: the answer is compressed where the input was
    layout: str = "FHWC"  # NPY: the axes of the array in the file
    notes: tuple[str, ...] = ()  # what decoding changed, for people to read


def check_size(rows: int, columns: int, frames: int, limits: Limits) -> None:
    """Judges a header's claim. Raises CorruptImage for an empty image, ImageTooLarge above the limits."""
    if min(rows, columns, frames) < 1:
        raise CorruptImage(f"the header describes an image without pixels ({frames} frames of {rows} x {columns})")
    if frames > limits.frames:
        raise ImageTooLarge(f"the image has more than {limits.frames} frames")
    if rows * columns * frames > limits.pixels:
        raise ImageTooLarge(f"{frames} frames of {rows} x {columns} pixels are more than the limit of {limits.pixels}")


def drop_alpha(pixels: Array) -> Array:
    """Drops the last sample of (..., samples) where it is fully opaque; raises UnsupportedImage ("alpha") elsewhere.

    Opaque is the type's largest value for integers, 1.0 for floating point.
    """
    opaque = 1.0 if np.issubdtype(pixels.dtype, np.floating) else np.iinfo(pixels.dtype).max
    if (pixels[..., -1] != opaque).any():
        raise UnsupportedImage("alpha", "the image is partly transparent; flatten it onto a background first")
    return np.ascontiguousarray(pixels[..., :-1])


def orient(pixels: Array, orientation: int) -> Array:
    """Turns (rows, columns, samples) upright: `orientation` is 1 to 8 as in TIFF 6.0 tag 274 and EXIF."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned(orientation: int) -> bool:
    """Whether an orientation exchanges rows and columns."""
    return orientation in (5, 6, 7, 8)


def make_image(
    pixels: Array,
    format: str,
    source: RasterSource,
    spacing_mm: tuple[float, float] | None = None,
    inverted: bool = False,
    lossy: bool = False,
) -> Image:
    """An image from (frames, rows, columns, samples) of one of `DTYPES`, in native byte order.

    Integers may be written back over their type's whole range, floating point over all finite
    values. `inverted` says that the smallest value is white. Raises NonFinitePixels.
    """
    low, high = _storable(pixels.dtype)
    if np.issubdtype(pixels.dtype, np.floating):
        check_finite(int(np.count_nonzero(~np.isfinite(pixels))), pixels.size)
        values = float_values(pixels, inverted)
    else:
        values = integer_values(pixels.dtype, inverted)
    return Image(pixels, values, format, low, high, spacing_mm, lossy=lossy, source=source)


def check_finite(bad: int, samples: int) -> None:
    """Raises NonFinitePixels where some of the samples are `bad`."""
    if bad:
        raise NonFinitePixels(f"{bad} of {samples} samples are NaN or infinite; replace them first")


def _storable(dtype: np.dtype[Any]) -> tuple[float, float]:
    limits = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
    return float(limits.min), float(limits.max)


def source_of(image: Image) -> RasterSource:
    """The raster source of an image; an empty one where the image came from elsewhere (DICOM)."""
    return image.source if isinstance(image.source, RasterSource) else RasterSource()
