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
from io import BytesIO
from typing import Any

import numpy as np

from models.errors import CorruptImage, UnsupportedImage
from models.imaging.image import Image, Limits
from models.imaging.raster import DTYPES, RasterSource, check_size, make_image, source_of

Array = np.ndarray[Any, Any]

MAGIC = b"\x93NUMPY"
HEADER_MAX = 10_000  # bytes, numpy's own limit


def decode_npy(data: bytes, limits: Limits) -> Image:
    """Decodes an NPY file. Raises CorruptImage, ImageTooLarge, UnsupportedImage ("dtype", "shape")."""
    dtype, fortran, shape, start = _read_header(data)
    layout = _layout(shape)
    sizes = dict(zip(layout, shape, strict=True))
    check_size(sizes["H"], sizes["W"], sizes.get("F", 1), limits)
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise CorruptImage(f"the NPY header promises {math.prod(shape)} values, the file holds another number")
    flat = np.frombuffer(data, dtype, offset=start).astype(dtype.newbyteorder("="))
    array = flat.reshape(shape, order="F" if fortran else "C")
    pixels = array[None] if "F" not in layout else array
    pixels = pixels[..., None] if "C" not in layout else pixels
    return make_image(np.ascontiguousarray(pixels), "npy", RasterSource(layout=layout))


def encode_npy(image: Image) -> bytes:
    """Encodes stored values with the axes of an NPY input; of other inputs, axes of length 1 are left out."""
    layout = source_of(image).layout if image.format == "npy" else _compact_layout(image)
    pixels = image.pixels if "F" in layout else image.pixels[0]
    pixels = pixels if "C" in layout else pixels[..., 0]
    stream = BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


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
