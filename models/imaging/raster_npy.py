"""NPY (numpy.lib.format): arrays without pickles, of the six pixel types and two to four dimensions.

    (rows, columns)            one grey frame
    (rows, columns, 1 or 3)    one frame, grey or RGB
    (frames, rows, columns)    any other three-dimensional array
    (frames, rows, columns, 1 or 3)

The answer has the axes of the input.
"""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from io import SEEK_END, BytesIO
from typing import Any, BinaryIO

import numpy as np

from models.errors import CorruptImage, UnsupportedImage
from models.imaging.image import Image, Limits
from models.imaging.raster import DTYPES, RasterSource, check_finite, check_size, make_image, source_of
from models.imaging.values import float_values

Array = np.ndarray[Any, Any]

MAGIC = b"\x93NUMPY"
HEADER_MAX = 10_000  # bytes, numpy's own limit


def decode_npy(data: bytes, limits: Limits) -> Image:
    """Decodes an NPY file. Raises CorruptImage, ImageTooLarge, UnsupportedImage ("dtype", "shape")."""
    dtype, fortran, shape, start = _read_header(data)
    layout = _check_layout(shape, dtype, limits, len(data) - start)
    flat = np.frombuffer(data, dtype, offset=start).astype(dtype.newbyteorder("="))
    array = flat.reshape(shape, order="F" if fortran else "C")
    pixels = array[None] if "F" not in layout else array
    pixels = pixels[..., None] if "C" not in layout else pixels
    return make_image(np.ascontiguousarray(pixels), "npy", RasterSource(layout=layout))


def encode_npy(image: Image) -> bytes:
    """Encodes stored values with the axes of an NPY input; of other inputs, axes of length 1 are left out."""
    stream = BytesIO()
    write_header(stream, image)
    stream.write(image.pixels.tobytes())
    return stream.getvalue()


def write_header(stream: BinaryIO, image: Image) -> None:
    """What stands before the values, which follow frame by frame."""
    layout = source_of(image).layout if image.format == "npy" else _compact_layout(image)
    sizes = dict(zip("FHWC", image.pixels.shape, strict=True))
    facts = {
        "descr": np.lib.format.dtype_to_descr(image.pixels.dtype),
        "fortran_order": False,
        "shape": tuple(sizes[axis] for axis in layout),
    }
    np.lib.format.write_array_header_1_0(stream, facts)


def open_npy_frames(file: BinaryIO, limits: Limits) -> NpyFrames | None:
    """The frames of an NPY file, judged by its header and, where they are floating point, by all values.

    None for Fortran order, which scatters each frame over the whole file. Raises what `decode_npy` does.
    """
    dtype, fortran, shape, start = _read_header(file.read(HEADER_MAX))
    layout = _check_layout(shape, dtype, limits, file.seek(0, SEEK_END) - start)
    return None if fortran else NpyFrames(file, dtype, layout, shape, start)


class NpyFrames:
    """Frames of an NPY file one by one.

    `image` has the shape and type of all frames and the value 0 everywhere; it takes no memory.
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], layout: str, shape: tuple[int, ...], start: int) -> None:
        self._file = file
        self._dtype = dtype
        self._start = start
        sizes = dict(zip(layout, shape, strict=True))
        self._shape = (sizes["H"], sizes["W"], sizes.get("C", 1))  # of one frame
        native = dtype.newbyteorder("=")
        image = make_image(np.zeros((1, *self._shape), native), "npy", RasterSource(layout=layout))
        pixels = np.broadcast_to(np.zeros((), native), (sizes.get("F", 1), *self._shape))
        self.image = replace(image, pixels=pixels)
        if np.issubdtype(dtype, np.floating):
            self.image = replace(self.image, values=float_values(np.array([self._largest()], native)))

    def check(self) -> None:
        """Nothing: opening the file found everything."""

    def read(self, index: int) -> Image:
        """One frame as an image of its own."""
        size = math.prod(self._shape) * self._dtype.itemsize
        self._file.seek(self._start + index * size)
        values = np.frombuffer(self._file.read(size), self._dtype).reshape(1, *self._shape)
        return replace(self.image, pixels=values.astype(self._dtype.newbyteorder("=")))

    def _largest(self) -> float:
        """Largest magnitude of all frames. Raises NonFinitePixels."""
        bad, largest = 0, 0.0
        for index in range(self.image.frames):
            pixels = self.read(index).pixels
            bad += int(np.count_nonzero(~np.isfinite(pixels)))
            largest = max(largest, float(np.abs(pixels).max()))
        check_finite(bad, self.image.pixels.size)
        return largest


def _read_header(data: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Type, Fortran order, shape, and where the values start."""
    width = {1: 2, 2: 4, 3: 4}.get(data[6] if len(data) > 6 else 0)
    if width is None or len(data) < 8 + width:
        raise CorruptImage("the NPY header is cut short, or of a version that does not exist")
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if start > min(len(data), HEADER_MAX):
        raise CorruptImage("the NPY header is cut short, or longer than any honest one")
    try:
        header = ast.literal_eval(data[8 + width : start].decode("utf-8").strip())
        description, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as exc:
        raise CorruptImage("the NPY header cannot be read") from exc
    whole = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not whole or not isinstance(fortran, bool):
        raise CorruptImage("the NPY header cannot be read")
    return _read_dtype(description), fortran, shape, start


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], limits: Limits, bytes: int) -> str:
    """The axes of an array, once its size is within the limits and `bytes` are what it takes."""
    layout = _layout(shape)
    sizes = dict(zip(layout, shape, strict=True))
    check_size(sizes["H"], sizes["W"], sizes.get("F", 1), limits)
    if bytes != math.prod(shape) * dtype.itemsize:
        raise CorruptImage(f"the NPY header promises {math.prod(shape)} values, the file holds another number")
    return layout


def _read_dtype(description: object) -> np.dtype[Any]:
    known = {order + np.dtype(name).str[1:]: order for name in DTYPES for order in "<>|="}
    if not isinstance(description, str) or description not in known:
        raise UnsupportedImage("dtype", f"NPY arrays must hold one of {', '.join(DTYPES)}; convert the array first")
    return np.dtype(description)


def _layout(shape: tuple[int, ...]) -> str:
    colour = len(shape) > 2 and shape[-1] in (1, 3)
    layout = {(2, False): "HW", (3, True): "HWC", (3, False): "FHW", (4, True): "FHWC"}.get((len(shape), colour))
    if layout is None:
        raise UnsupportedImage("shape", "NPY arrays must be (H, W), (H, W, 3), (F, H, W) or (F, H, W, 3)")
    return layout


def _compact_layout(image: Image) -> str:
    return ("F" if image.frames > 1 else "") + "HW" + ("C" if image.samples > 1 else "")
