"""JPEG (ITU-T T.81): input only, 8 bits, grey and colour; `lossy` is set and the EXIF orientation applied.

Of a file with several pictures (MPO) the first is read. CMYK, 12 bits and lossless coding are refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from models.errors import CorruptImage, UnsupportedImage
from models.imaging.image import Image, Limits
from models.imaging.raster import INCH_MM, RasterSource, check_size, make_image, orient, turned

MAGIC = b"\xff\xd8\xff"
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC
LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without content
SCAN, END = 0xDA, b"\xff\xd9"
ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG stream says of itself before its first scan."""

    rows: int
    columns: int
    components: int
    bits: int
    lossless: bool


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Reads the frame header and makes sure that the stream has an end. Raises CorruptImage."""
    at, header = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF or marker in STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in FRAMES and at + 10 <= len(data):
            bits, rows, columns, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
            header = JpegHeader(rows, columns, components, bits, marker in LOSSLESS)
        if marker == SCAN:
            break
        at += 2 + size
    if header is None or END not in data[at:]:
        raise CorruptImage("the JPEG data is cut short or damaged")
    return header


def decode_jpeg(data: bytes, limits: Limits) -> Image:
    """Decodes a JPEG file to RGB or grey, lossy.

    Raises CorruptImage, ImageTooLarge, UnsupportedImage ("bit_depth", "jpeg_lossless", "cmyk").
    """
    header = read_jpeg_header(data)
    check_size(header.rows, header.columns, 1, limits)
    if header.lossless:
        raise UnsupportedImage("jpeg_lossless", "lossless JPEG outside DICOM is not read")
    if header.bits != 8:
        raise UnsupportedImage("bit_depth", f"JPEG of {header.bits} bits outside DICOM is not read")
    # Not PIL.Image.open: its own size limit would overrule ours.
    with JpegImageFile(BytesIO(data)) as picture:
        if picture.mode not in ("L", "RGB"):
            raise UnsupportedImage("cmyk", f"JPEG in {picture.mode} colours is not read; convert it to RGB first")
        orientation = picture.getexif().get(ORIENTATION, 1)
        pixels = np.array(picture)
        source = RasterSource(icc=picture.info.get("icc_profile"))
        spacing = _read_spacing(picture)
    if turned(orientation):
        spacing = spacing and (spacing[1], spacing[0])
    pixels = orient(pixels.reshape(*pixels.shape[:2], -1), orientation)
    return make_image(pixels[None], "jpeg", source, spacing, lossy=True)


def _read_spacing(picture: JpegImageFile) -> tuple[float, float] | None:
    """Row and column spacing from the JFIF density; None where it is only an aspect ratio."""
    unit_mm = {1: INCH_MM, 2: 10.0}.get(picture.info.get("jfif_unit", 0))
    across, down = picture.info.get("jfif_density", (0, 0))
    return (unit_mm / down, unit_mm / across) if unit_mm and across > 0 and down > 0 else None
