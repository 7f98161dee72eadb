"""TIFF 6.0 and BigTIFF: 8 and 16 bit integers, signed or not, float32 and float64; grey and RGB.

Several pages are read as frames when all are of one kind, and written as pages again; thumbnails,
masks, sub-images and mixed pages are refused ("extra_pages"), never dropped. MINISWHITE keeps its
stored values and its sense. The orientation tag is applied. Resolution and ICC profile of the first
page come back in the answer; descriptions, dates and private tags do not.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from isal import isal_zlib

from models.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from models.imaging.image import Image, Limits
from models.imaging.raster import (
    DTYPES,
    INCH_MM,
    RasterSource,
    check_size,
    drop_alpha,
    make_image,
    orient,
    source_of,
    turned,
)
from models.imaging.raster_jpeg import read_jpeg_header

Array = np.ndarray[Any, Any]
Page = tifffile.TiffPage

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MINISWHITE, MINISBLACK, RGB, YCBCR = 0, 1, 2, 6
JPEG = 7
# Codecs whose output size is bounded by the caller, so that no segment can unfold without limit.
COMPRESSIONS = {1, 5, JPEG, 8, 32946, 32773, 34925, 34926, 50000}  # none, LZW, JPEG, Deflate, PackBits, LZMA, Zstandard
LEVEL = 1  # of ISA-L's deflate
STRIP_BYTES = 256 * 1024
ALPHA = (1, 2)  # values of ExtraSamples
UNIT_MM = {2: INCH_MM, 3: 10.0}  # ResolutionUnit
COLOURS = {3: "palette", 4: "mask", 5: "cmyk", YCBCR: "ycbcr", 8: "cielab", 32803: "raw camera", 34892: "raw camera"}

logging.getLogger("tifffile").disabled = True  # it logs what it finds in tags, which may be a patient's


def decode_tiff(data: bytes, limits: Limits) -> Image:
    """Decodes a TIFF file of one page, or of several of one kind.

    Raises CorruptImage, ImageTooLarge, NonFinitePixels, and UnsupportedImage ("alpha", "bit_depth",
    "colour", "compression", "extra_pages", "extra_samples", "volume").
    """
    count = _count_pages(data, limits)
    with tifffile.TiffFile(BytesIO(data)) as file:
        pages = [page for page in file.pages if isinstance(page, Page)]
        if len(pages) != count:
            raise CorruptImage("a page of the TIFF cannot be read")
        first = pages[0]
        check_size(first.imagelength, first.imagewidth, count, limits)
        _check_pages(file, pages)
        _check_kind(first)
        for page in pages:
            _check_segments(page, data, limits)
        pixels = np.stack([_read_page(page) for page in pages])
        spacing, icc = _read_spacing(first), first.tags.valueof(34675)
    return make_image(
        pixels,
        "tiff",
        RasterSource(icc=icc if isinstance(icc, bytes) else None, compressed=first.compression != 1),
        spacing,
        inverted=first.photometric == MINISWHITE,
        lossy=first.compression == JPEG,
    )


def encode_tiff(image: Image) -> bytes:
    """Encodes stored values of any type, one page per frame, little endian.

    An image whose smallest value is white is written as MINISWHITE. Deflate where the input was a
    compressed TIFF, uncompressed otherwise.
    """
    source = source_of(image)
    grey = "miniswhite" if image.values.scale < 0 else "minisblack"
    spacing = image.spacing_mm
    stream = BytesIO()
    with tifffile.TiffWriter(stream, byteorder="<", bigtiff=image.pixels.nbytes > 2**32 - 2**25) as writer:
        for frame in image.pixels:
            pixels = np.ascontiguousarray(frame if image.samples == 3 else frame[..., 0])
            writer.write(
                _strips(pixels) if source.compressed else pixels,
                shape=pixels.shape,
                dtype=pixels.dtype,
                rowsperstrip=_strip_rows(pixels),
                compression="zlib" if source.compressed else None,
                predictor=_predicts(pixels) if source.compressed else None,
                photometric="rgb" if image.samples == 3 else grey,
                resolution=spacing and (10 / spacing[1], 10 / spacing[0]),
                resolutionunit="centimeter" if spacing else None,
                iccprofile=source.icc,
                software=False,
                metadata=None,
                maxworkers=1,
            )
    return stream.getvalue()


def _strip_rows(pixels: Array) -> int:
    return max(1, STRIP_BYTES // int(pixels[0].nbytes))


def _predicts(pixels: Array) -> bool:
    return bool(np.issubdtype(pixels.dtype, np.integer))


def _strips(pixels: Array) -> Iterator[bytes]:
    """Deflated strips of (rows, columns[, samples]), little endian; integers as differences from the left pixel.

    ISA-L takes a fifth of the time of the compressor that tifffile would call.
    """
    step = _strip_rows(pixels)
    for start in range(0, len(pixels), step):
        strip = pixels[start : start + step].astype(pixels.dtype.newbyteorder("<"))
        if _predicts(pixels):
            strip[:, 1:] = strip[:, 1:] - strip[:, :-1]  # not in place: the right side is read whole first
        yield isal_zlib.compress(strip, LEVEL)


def _count_pages(data: bytes, limits: Limits) -> int:
    """Follows the chain of page directories. Raises CorruptImage where it breaks or turns back on itself."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in (data[2], data[3])
    at, count_format, entry, link = (8, "Q", 20, "Q") if big else (4, "H", 12, "I")
    seen: set[int] = set()
    try:
        while (offset := struct.unpack_from(order + link, data, at)[0]) != 0:
            if offset in seen:
                raise CorruptImage("the TIFF's page directories form a circle")
            seen.add(offset)
            if len(seen) > limits.frames:
                raise ImageTooLarge(f"the image has more than {limits.frames} frames")
            entries = struct.unpack_from(order + count_format, data, offset)[0]
            at = offset + struct.calcsize("<" + count_format) + entries * entry
    except (struct.error, OverflowError) as exc:
        raise CorruptImage("the TIFF is cut short or its page directory damaged") from exc
    if not seen:
        raise CorruptImage("the TIFF holds no image")
    return len(seen)


def _check_pages(file: tifffile.TiffFile, pages: list[Page]) -> None:
    """Refuses whatever would get lost if the pages were read as frames."""
    kinds = {(p.shape, str(p.dtype), p.photometric, p.extrasamples, p.planarconfig, p.tags.valueof(274)) for p in pages}
    if len(kinds) > 1:
        raise UnsupportedImage("extra_pages", "the TIFF's pages differ in kind; send them one by one")
    if any(page.subifds or page.is_reduced or page.is_mask for page in pages):
        raise UnsupportedImage("extra_pages", "the TIFF holds thumbnails, masks or sub-images; save the image alone")
    imagej = file.imagej_metadata if file.is_imagej else None
    if imagej and imagej.get("images", 1) != len(pages):
        raise UnsupportedImage("extra_pages", "the TIFF is an ImageJ stack without page directories; save it again")


def _check_kind(page: Page) -> None:
    """Refuses kinds of pixels that are out of scope, each by name."""
    grey_or_rgb = page.photometric in (MINISWHITE, MINISBLACK, RGB)
    if not grey_or_rgb and not (page.photometric == YCBCR and page.compression == JPEG):
        name = COLOURS.get(page.photometric, f"number {int(page.photometric)}")
        raise UnsupportedImage("colour", f"TIFF of colour type {name} is not read; convert it to grey or RGB first")
    if page.compression not in COMPRESSIONS:
        raise UnsupportedImage(
            "compression", f"TIFF compression {int(page.compression)} is not read; use Deflate or none"
        )
    if str(page.dtype) not in DTYPES or page.bitspersample != np.dtype(page.dtype).itemsize * 8:
        raise UnsupportedImage("bit_depth", f"TIFF values must be of {', '.join(DTYPES)}; convert the image first")
    if page.imagedepth != 1:
        raise UnsupportedImage("volume", "a TIFF page with a depth is not read; save one page per slice")
    colours = page.samplesperpixel - len(page.extrasamples)
    if colours != (3 if page.photometric in (RGB, YCBCR) else 1):
        raise UnsupportedImage("extra_samples", f"TIFF of {page.samplesperpixel} samples per pixel is not read")
    if page.extrasamples and (len(page.extrasamples) > 1 or page.extrasamples[0] not in ALPHA):
        raise UnsupportedImage("extra_samples", "the TIFF holds samples beside grey, RGB and alpha; save it without")


def _check_segments(page: Page, data: bytes, limits: Limits) -> None:
    """Makes sure that every strip or tile lies in the file and is no larger than it should be."""
    count = int(np.prod(page.chunked))
    if page.is_tiled and page.tilelength * page.tilewidth > limits.pixels:
        raise ImageTooLarge(f"the TIFF's tiles are larger than the limit of {limits.pixels} pixels")
    spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))[:count]
    if len(spans) < count or any(size < 1 or start < 1 or start + size > len(data) for start, size in spans):
        raise CorruptImage("the TIFF is cut short: strips or tiles of pixels are missing")
    if page.compression != JPEG:
        return
    rows, columns = (
        (page.tilelength, page.tilewidth)
        if page.is_tiled
        else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
    )
    for start, size in spans:
        header = read_jpeg_header(data[start : start + size])
        if header.rows > rows or header.columns > columns or header.bits != 8:
            raise CorruptImage("a JPEG inside the TIFF is larger than its strip or tile")


def _read_page(page: Page) -> Array:
    """One page upright, (rows, columns, samples), native byte order."""
    array = page.asarray(squeeze=False, maxworkers=1)  # (planes, 1, rows, columns, samples of a plane)
    if array.shape[2:4] != (page.imagelength, page.imagewidth):
        raise CorruptImage("the TIFF decoder found another size than the header's")
    pixels = np.moveaxis(array[:, 0], 0, -2).reshape(page.imagelength, page.imagewidth, -1)
    pixels = np.array(pixels, dtype=np.dtype(page.dtype).newbyteorder("="))
    if page.extrasamples:
        pixels = drop_alpha(pixels)
    return orient(pixels, _orientation(page))


def _orientation(page: Page) -> int:
    value = page.tags.valueof(274, default=1)
    return int(value) if isinstance(value, int) else 1


def _read_spacing(page: Page) -> tuple[float, float] | None:
    """Row and column spacing; None where the resolution is only an aspect ratio or is not given."""
    unit_mm = UNIT_MM.get(page.tags.valueof(296, default=2))
    across, down = page.tags.valueof(282), page.tags.valueof(283)
    if unit_mm is None or across is None or down is None or not all((*across, *down)):
        return None
    spacing = unit_mm * down[1] / down[0], unit_mm * across[1] / across[0]
    return spacing[::-1] if turned(_orientation(page)) else spacing
