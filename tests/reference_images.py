"""One table of reference files: bytes made by other software than our encoders, and what they must decode to.

Every decoder, encoder and identity test runs over it. To add a format or a kind of pixels, add a row.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from PIL import Image as Picture

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Reference:
    """A file and its expected pixels, (frames, rows, columns, samples) in the stored type."""

    name: str
    data: bytes
    pixels: Array
    format: str
    inverted: bool = False
    lossy: bool = False
    tolerance: int = 0  # grey levels, for lossy files alone

    def __str__(self) -> str:
        return self.name


def draw(dtype: str, *shape: int, low: float | None = None, high: float | None = None) -> Array:
    """Pixels over the type's whole range, or over [low, high], its ends included; equal on every call."""
    random = np.random.default_rng(sum(shape))
    if np.issubdtype(np.dtype(dtype), np.floating):
        return random.normal(0.25, 1.5, shape).astype(dtype)
    limits = np.iinfo(np.dtype(dtype))
    low, high = limits.min if low is None else low, limits.max if high is None else high
    pixels = random.integers(int(low), int(high) + 1, shape)
    pixels.flat[0], pixels.flat[-1] = low, high
    return pixels.astype(dtype)


def stacked(pixels: Array) -> Array:
    """(rows, columns[, samples]) as one frame (1, rows, columns, samples)."""
    return pixels.reshape(1, *pixels.shape[:2], -1)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(rows: int, columns: int, depth: int, colour: int, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def png(
    pixels: Array, depth: int, colour: int, *extra: tuple[bytes, bytes], passes: list[Array] | None = None
) -> bytes:
    """PNG written by hand from (rows, columns, samples), no filter; `passes` replaces the rows where interlaced."""
    head = png_header(*pixels.shape[:2], depth, colour, 0 if passes is None else 1)
    rows = [row for part in ([pixels] if passes is None else passes) for row in part]
    raw = b"".join(b"\0" + pack(row.reshape(-1), depth) for row in rows)
    chunks = [*extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return head + b"".join(png_chunk(*chunk) for chunk in chunks)


def pack(values: Array, depth: int) -> bytes:
    """One row of samples of `depth` bits, most significant bits first."""
    if depth >= 8:
        return values.astype(f">u{depth // 8}").tobytes()
    bits = (values[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def adam7(pixels: Array) -> list[Array]:
    """The seven reduced images of PNG interlacing (PNG specification, section 8.2)."""
    grid = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    parts = [pixels[top::down, left::across] for top, down, left, across in grid]
    return [part for part in parts if part.size]


def saved(picture: Picture.Image, format: str, **options: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def tiff(pixels: Array, byteorder: str = "<", bigtiff: bool = False, **options: Any) -> bytes:
    stream = BytesIO()
    with tifffile.TiffWriter(stream, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(pixels, **{"photometric": "minisblack", "metadata": None, **options})
    return stream.getvalue()


def npy(array: Array) -> bytes:
    stream = BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _pngs() -> list[Reference]:
    grey8, grey16, rgb8 = draw("uint8", 17, 23), draw("uint16", 12, 9), draw("uint8", 11, 6, 3)
    rgb16, low12 = draw("uint16", 5, 8, 3), draw("uint16", 16, 16, high=4095)
    palette = draw("uint8", 7, 3)
    index = draw("uint8", 9, 10, high=6)[..., None]
    colours, greys = (b"PLTE", palette.tobytes()), (b"PLTE", np.repeat(palette[:, :1], 3, 1).tobytes())
    below = np.minimum(grey8, 254)
    opaque16 = np.concatenate([rgb16, np.full((5, 8, 1), 65535, np.uint16)], -1)
    rows = [
        ("png_grey8_by_pillow", saved(Picture.fromarray(grey8), "PNG"), grey8),
        ("png_rgb8_by_pillow", saved(Picture.fromarray(rgb8), "PNG"), rgb8),
        ("png_grey16_by_pillow", saved(Picture.fromarray(grey16), "PNG"), grey16),
        ("png_grey12_in_16", png(low12[..., None], 16, 0, (b"sBIT", b"\x0c")), low12),
        ("png_rgb16", png(rgb16, 16, 2), rgb16),
        ("png_rgb16_interlaced", png(rgb16, 16, 2, passes=adam7(rgb16)), rgb16),
        ("png_grey8_interlaced", png(grey8[..., None], 8, 0, passes=adam7(grey8[..., None])), grey8),
        ("png_rgba16_opaque", png(opaque16, 16, 6), rgb16),
        ("png_grey_alpha8_opaque", png(np.stack([grey8, np.full_like(grey8, 255)], -1), 8, 4), grey8),
        ("png_grey_key_unused", png(below[..., None], 8, 0, (b"tRNS", b"\0\xff")), below),
        ("png_palette", png(index, 8, 3, colours), palette[index[..., 0]]),
        ("png_palette4", png(index, 4, 3, colours), palette[index[..., 0]]),
        ("png_palette_of_greys", png(index, 8, 3, greys), palette[index[..., 0], :1]),
        ("png_1x1", png(np.array([[[7]]]), 8, 0), np.array([[7]], np.uint8)),
        ("png_1x3_rgb", png(draw("uint8", 1, 3, 3), 8, 2), draw("uint8", 1, 3, 3)),
    ]  # fmt: skip
    for depth in (1, 2, 4):
        bits = draw("uint8", 5, 7, high=2**depth - 1)
        rows.append((f"png_grey{depth}", png(bits[..., None], depth, 0), bits * (255 // (2**depth - 1))))
    return [Reference(name, data, stacked(np.asarray(pixels)), "png") for name, data, pixels in rows]


def _tiffs() -> list[Reference]:
    grey16, rgb8, rgb16 = draw("uint16", 33, 20), draw("uint8", 18, 21, 3), draw("uint16", 6, 35, 3)
    signed, single = draw("int16", 13, 11, low=-1024, high=3071), draw("float32", 15, 10)
    opaque = np.concatenate([rgb8, np.full((18, 21, 1), 255, np.uint8)], -1)
    planar = {"photometric": "rgb", "planarconfig": "separate"}
    turned = [(274, "H", 1, 6, True)]  # the first row is the picture's right side
    rows = [
        *((f"tiff_{dtype}", tiff(draw(dtype, 14, 9)), draw(dtype, 14, 9))
          for dtype in ("uint8", "int8", "uint16", "int16", "float32", "float64")),
        *((f"tiff_uint16_{codec}", tiff(grey16, compression=codec, rowsperstrip=7), grey16)
          for codec in ("lzw", "zlib", "packbits", "zstd", "lzma")),
        ("tiff_int16_hu_big_endian", tiff(signed, ">"), signed),
        ("tiff_int16_lzw_predictor_big_endian", tiff(signed, ">", compression="lzw", predictor=True), signed),
        ("tiff_float32_predictor", tiff(single, compression="zlib", predictor=True), single),
        ("tiff_float64_big_endian", tiff(draw("float64", 8, 8), ">"), draw("float64", 8, 8)),
        ("tiff_bigtiff", tiff(grey16, bigtiff=True), grey16),
        ("tiff_bigtiff_big_endian", tiff(grey16, ">", bigtiff=True), grey16),
        ("tiff_tiles", tiff(grey16, tile=(16, 16), compression="zlib"), grey16),
        ("tiff_rgb8", tiff(rgb8, photometric="rgb"), rgb8),
        ("tiff_rgb16_planar", tiff(np.moveaxis(rgb16, 2, 0), **planar), rgb16),
        ("tiff_rgb8_planar_tiles", tiff(np.moveaxis(rgb8, 2, 0), tile=(16, 16), compression="lzw", **planar), rgb8),
        ("tiff_rgba8_opaque", tiff(opaque, photometric="rgb", extrasamples=["unassalpha"]), rgb8),
        ("tiff_float32_rgb", tiff(draw("float32", 4, 5, 3), photometric="rgb"), draw("float32", 4, 5, 3)),
        ("tiff_orientation_6", tiff(grey16, extratags=turned), np.rot90(grey16, -1)),
        ("tiff_1x1", tiff(draw("float32", 1, 1)), draw("float32", 1, 1)),
        ("tiff_by_pillow", saved(Picture.fromarray(rgb8), "TIFF", compression="tiff_lzw"), rgb8),
    ]  # fmt: skip
    frames = draw("uint16", 3, 12, 10)
    colour_frames = draw("uint8", 2, 6, 7, 3)
    blocks = np.kron(draw("uint8", 4, 4, low=60, high=190), np.ones((16, 16), np.uint8))
    return [
        *(Reference(name, data, stacked(pixels), "tiff") for name, data, pixels in rows),
        Reference("tiff_three_pages", tiff(frames), frames[..., None], "tiff"),
        Reference("tiff_two_rgb_pages", tiff(colour_frames, photometric="rgb"), colour_frames, "tiff"),
        Reference("tiff_miniswhite", tiff(grey16, photometric="miniswhite"), stacked(grey16), "tiff", inverted=True),
        Reference("tiff_float32_miniswhite", tiff(single, photometric="miniswhite"), stacked(single), "tiff", True),
        Reference("tiff_jpeg", tiff(blocks, compression="jpeg"), stacked(blocks), "tiff", lossy=True, tolerance=12),
    ]


def _npys() -> list[Reference]:
    rows = [
        *((f"npy_{dtype}", npy(draw(dtype, 7, 12)), stacked(draw(dtype, 7, 12)))
          for dtype in ("uint8", "int8", "uint16", "int16", "float32", "float64")),
        ("npy_rgb8", npy(draw("uint8", 6, 5, 3)), stacked(draw("uint8", 6, 5, 3))),
        ("npy_single_sample_axis", npy(draw("int16", 6, 5, 1)), stacked(draw("int16", 6, 5, 1))),
        ("npy_frames", npy(draw("float32", 3, 5, 8)), draw("float32", 3, 5, 8)[..., None]),
        ("npy_rgb_frames", npy(draw("uint16", 2, 5, 8, 3)), draw("uint16", 2, 5, 8, 3)),
        ("npy_fortran", npy(np.asfortranarray(draw("uint16", 6, 9))), stacked(draw("uint16", 6, 9))),
        ("npy_big_endian", npy(draw("int16", 6, 9).astype(">i2")), stacked(draw("int16", 6, 9))),
        ("npy_1x1", npy(draw("float64", 1, 1)), stacked(draw("float64", 1, 1))),
    ]  # fmt: skip
    return [Reference(name, data, pixels, "npy") for name, data, pixels in rows]


def _jpegs() -> list[Reference]:
    grey = np.kron(draw("uint8", 3, 2, low=40, high=200), np.ones((8, 8), np.uint8))
    colour = np.broadcast_to(np.array([200, 120, 60], np.uint8), (16, 24, 3))
    turn = Picture.Exif()
    turn[0x0112] = 8  # the first row is the picture's left side, the first column its bottom
    best = {"quality": 100, "subsampling": 0}
    rows = [
        ("jpeg_grey", saved(Picture.fromarray(grey), "JPEG", **best), grey),
        ("jpeg_rgb", saved(Picture.fromarray(colour), "JPEG", **best), colour),
        ("jpeg_progressive", saved(Picture.fromarray(colour), "JPEG", progressive=True, **best), colour),
        ("jpeg_exif_orientation_8", saved(Picture.fromarray(grey), "JPEG", exif=turn, **best), np.rot90(grey, 1)),
    ]
    return [Reference(name, data, stacked(pixels), "jpeg", lossy=True, tolerance=3) for name, data, pixels in rows]


REFERENCES = [*_pngs(), *_tiffs(), *_npys(), *_jpegs()]
LOSSLESS = [reference for reference in REFERENCES if not reference.lossy]
