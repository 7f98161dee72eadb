"""PNG (W3C recommendation, third edition): 8 and 16 bit, grey and RGB.

Grey of 1, 2 and 4 bits comes as 8 bits over the full range, palettes as grey or RGB: both said in
`source.notes`. A fully opaque alpha channel is dropped, any other refused, and so is animation.
Resolution (pHYs), ICC profile and the colour chunks come back in the answer; text and EXIF do not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from isal import isal_zlib

from models.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from models.imaging.image import Image, Limits
from models.imaging.raster import RasterSource, check_size, drop_alpha, make_image, source_of

Array = np.ndarray[Any, Any]

MAGIC = b"\x89PNG\r\n\x1a\n"
HEADER_END = len(MAGIC) + 25  # the magic bytes and the IHDR chunk
CHUNKS_MAX = 1_000_000
ICC_BYTES_MAX = 4 * 1024**2
COLOUR_CHUNKS = (b"cHRM", b"gAMA", b"sRGB", b"cICP")
GREY, RGB, PALETTE = 0, 2, 3
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
SUB = 1  # filter type: each byte less the same byte of the pixel to its left
# ISA-L at this level takes a fifth of libpng's time at its fastest, for files no larger: grain hardly compresses.
LEVEL = 1


@dataclass(frozen=True)
class _Header:
    rows: int
    columns: int
    depth: int
    colour: int


def decode_png(data: bytes, limits: Limits) -> Image:
    """Decodes a PNG file. Raises CorruptImage, ImageTooLarge, UnsupportedImage ("alpha", "animation")."""
    header = _read_header(data)
    check_size(header.rows, header.columns, 1, limits)
    chunks = list(_walk(data))
    named = {name: content for name, content, _ in reversed(chunks)}  # the first of each type
    if b"acTL" in named:
        raise UnsupportedImage("animation", "animated PNG is not read; send its frames one by one")
    # Nothing but what makes the pixels reaches the decoder.
    kept = [whole for name, _, whole in chunks if name == b"tRNS" or name[:1].isupper()]
    pixels = imagecodecs.png_decode(b"".join([MAGIC, *kept]))
    pixels = pixels.reshape(header.rows, header.columns, -1)
    if pixels.shape[2] in (2, 4):
        pixels = drop_alpha(pixels)
    grey_palette = header.colour == PALETTE and (pixels == pixels[..., :1]).all()
    pixels = np.ascontiguousarray(pixels[..., :1]) if grey_palette else pixels
    return make_image(pixels[None], "png", _source(header, named, pixels.shape[2]), _read_spacing(named))


def encode_png(image: Image) -> bytes:
    """Encodes stored values, uint8 or uint16, one frame; values of an inverted sense are mirrored.

    PNG knows neither signed values, floating point nor frames: raises UnsupportedImage
    ("png_dtype", "png_frames"). Its grey has 0 as black, so an image whose smallest value is white
    (MONOCHROME1, MINISWHITE) is written as minimum + maximum - value.
    """
    if image.pixels.dtype not in (np.uint8, np.uint16):
        raise UnsupportedImage("png_dtype", f"PNG cannot hold {image.pixels.dtype} values; ask for TIFF or NPY")
    if image.frames != 1:
        raise UnsupportedImage("png_frames", f"PNG cannot hold {image.frames} frames; ask for TIFF or NPY")
    pixels = image.pixels[0]
    if image.values.scale < 0:
        pixels = (int(image.minimum) + int(image.maximum) - pixels.astype(np.int32)).astype(pixels.dtype)
    rows, columns, samples = pixels.shape
    header = struct.pack(">IIBB3x", columns, rows, image.bits, RGB if samples == 3 else GREY)
    data = (b"IDAT", isal_zlib.compress(_filtered(pixels), LEVEL))
    chunks = [(b"IHDR", header), *_metadata(image), data, (b"IEND", b"")]
    return b"".join([MAGIC, *(_chunk(name, content) for name, content in chunks)])


def _filtered(pixels: Array) -> Array:
    """Scan lines (rows, 1 + bytes of a row) of pixels (rows, columns, samples), all with filter `SUB`."""
    rows, _, samples = pixels.shape
    lines = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(rows, -1)
    step = samples * pixels.itemsize
    filtered = np.empty((rows, 1 + lines.shape[1]), np.uint8)
    filtered[:, 0] = SUB
    filtered[:, 1 : 1 + step] = lines[:, :step]
    np.subtract(lines[:, step:], lines[:, :-step], out=filtered[:, 1 + step :])
    return filtered


def _read_header(data: bytes) -> _Header:
    if len(data) < HEADER_END or data[8:16] != b"\0\0\0\rIHDR":
        raise CorruptImage("the PNG header is cut short or damaged")
    columns, rows, depth, colour = struct.unpack(">IIBB", data[16:26])
    if depth not in DEPTHS.get(colour, ()):
        raise CorruptImage(f"the PNG header names colour type {colour} with {depth} bits, which does not exist")
    return _Header(rows, columns, depth, colour)


def _walk(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Type, content and whole of every chunk up to IEND. Raises CorruptImage for a bad checksum or a missing end."""
    at = len(MAGIC)
    for _ in range(CHUNKS_MAX):
        if at + 12 > len(data):
            raise CorruptImage("the PNG data is cut short")
        size = int.from_bytes(data[at : at + 4], "big")
        whole = data[at : at + 12 + size]
        if len(whole) < 12 + size:
            raise CorruptImage("the PNG data is cut short")
        name, content = whole[4:8], whole[8:-4]
        if isal_zlib.crc32(whole[4:-4]).to_bytes(4, "big") != whole[-4:]:
            raise CorruptImage("a checksum inside the PNG does not hold; the file is damaged")
        yield name, content, whole
        if name == b"IEND":
            return
        at += 12 + size
    raise ImageTooLarge(f"the PNG consists of more than {CHUNKS_MAX} chunks")


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(name))
    return b"".join([len(content).to_bytes(4, "big"), name, content, checksum.to_bytes(4, "big")])


def _source(header: _Header, named: dict[bytes, bytes], samples: int) -> RasterSource:
    notes = []
    if header.colour == PALETTE:
        notes.append(f"palette replaced by {'grey' if samples == 1 else 'RGB'} values")
    elif header.depth < 8:
        notes.append(f"{header.depth}-bit grey expanded to 8 bits")
    if header.colour == PALETTE and samples == 1:
        return RasterSource(notes=tuple(notes))  # the colour description is one of RGB
    chunks = tuple((name, named[name]) for name in COLOUR_CHUNKS if name in named)
    return RasterSource(icc=_read_icc(named), chunks=chunks, notes=tuple(notes))


def _read_icc(named: dict[bytes, bytes]) -> bytes | None:
    """The profile of an iCCP chunk; None where there is none, or one too damaged or large to pass on."""
    _, _, rest = named.get(b"iCCP", b"").partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(rest[1:], ICC_BYTES_MAX)
    except zlib.error:
        return None
    return profile if inflater.eof else None


def _read_spacing(named: dict[bytes, bytes]) -> tuple[float, float] | None:
    physical = named.get(b"pHYs", b"")
    if len(physical) != 9:
        return None
    columns_per_m, rows_per_m, unit = struct.unpack(">IIB", physical)
    if unit != 1 or not columns_per_m or not rows_per_m:
        return None
    return 1000 / rows_per_m, 1000 / columns_per_m


def _metadata(image: Image) -> Iterator[tuple[bytes, bytes]]:
    source = source_of(image)
    yield from source.chunks
    if source.icc is not None:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(source.icc)
    if image.spacing_mm is not None:
        rows_per_m, columns_per_m = (min(max(round(1000 / step), 1), 2**31 - 1) for step in image.spacing_mm)
        yield b"pHYs", struct.pack(">IIB", columns_per_m, rows_per_m, 1)
