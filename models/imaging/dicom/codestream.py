"""Reads the headers of compressed frames, so that no decoder believes what the dataset denies.

Decoders allocate by what the codestream says. A frame whose own size contradicts Rows and Columns,
that claims millions of tiles, or that was cut short is refused before any of them sees it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from models.errors import CorruptImage

_STARTS_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # stuffing, TEM, RSTn, SOI, EOI: none may precede the scan
_APP0, _APP14, _START_OF_SCAN = 0xE0, 0xEE, 0xDA
_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_MOST_TILES = 65_535  # ISO/IEC 15444-1 A.4.2: Isot is 16 bits
_RLE_UNCHECKED = 4 * 1024**2  # a packed frame below this cannot unpack to more than 256 MiB


@dataclass(frozen=True)
class Codestream:
    """What a compressed frame says about itself."""

    rows: int
    columns: int
    samples: int
    precision: int
    reversible: bool = False  # JPEG 2000: the reversible 5-3 wavelet


def read_codestream(frame: bytes, coding: str) -> Codestream:
    """Header of one frame of "jpeg", "jpeg-ls" or "jpeg2000" coding. Raises CorruptImage."""
    if _END not in frame.rstrip(b"\0")[-4:]:
        raise CorruptImage("truncated: a compressed frame has no end marker", "truncated")
    try:
        return _read_jpeg2000(frame) if coding == "jpeg2000" else _read_jpeg(frame)
    except (IndexError, struct.error):
        raise CorruptImage("truncated: the header of a compressed frame is cut short", "truncated") from None


def _read_jpeg(frame: bytes) -> Codestream:
    """ISO/IEC 10918-1 B.2.2 and ISO/IEC 14495-1 C.2.2: the frame header has one layout for both.

    All segments up to the scan must follow each other and be well formed. That is stricter than most
    readers, for gdcm aborts the process where the libjpeg inside it merely has a warning.
    """
    if frame[:2] != b"\xff\xd8":
        raise CorruptImage("a compressed frame is no JPEG codestream")
    offset, header, transform = 2, None, 0
    while True:
        marker, code, length = struct.unpack_from(">BBH", frame, offset)
        if marker == 0xFF and code == 0xFF:  # fill byte before a marker
            offset += 1
            continue
        if marker != 0xFF or code in _STANDALONE or length < 2:
            raise CorruptImage("a compressed frame has damaged JPEG markers")
        content = frame[offset + 4 : offset + 2 + length]
        if code in _STARTS_OF_FRAME:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", content)
            header = Codestream(rows, columns, samples, precision)
        elif code == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            transform = content[11]
        elif code == _APP0 and content.startswith(b"JFIF\0") and content[5] != 1:
            raise CorruptImage("a compressed frame has an unknown version of JFIF")
        elif code == _START_OF_SCAN:
            break
        offset += 2 + length
    if header is None or transform > 1:
        raise CorruptImage("a compressed frame has no JPEG frame header or an unknown colour transform")
    return header


def _read_jpeg2000(frame: bytes) -> Codestream:
    """ISO/IEC 15444-1 A.5.1 (SIZ) and A.6.1 (COD)."""
    start = _codestream_start(frame)
    if frame[start : start + 4] != b"\xff\x4f\xff\x51":  # SOC and SIZ
        raise CorruptImage("a compressed frame is no JPEG 2000 codestream")
    length = struct.unpack_from(">H", frame, start + 4)[0]
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, samples, depth = struct.unpack_from(
        ">8IHB", frame, start + 8
    )
    if not (tile_width and tile_height):
        raise CorruptImage("a JPEG 2000 frame has tiles without a size")
    across = -(-(right - tile_left) // tile_width)
    down = -(-(bottom - tile_top) // tile_height)
    if across * down > _MOST_TILES:
        raise CorruptImage("a JPEG 2000 frame claims more tiles than the format allows")
    reversible = _uses_reversible_wavelet(frame, start + 4 + length)
    return Codestream(bottom - top, right - left, samples, (depth & 0x7F) + 1, reversible)


def _codestream_start(frame: bytes) -> int:
    """Where the codestream begins: at once, or in a JP2 file (annex I), which DICOM forbids but some write.

    A box without a length makes pydicom search for ever; it is refused here.
    """
    if not frame.startswith(b"\x00\x00\x00\x0cjP  "):
        return 0
    offset = 12
    while frame[offset + 4 : offset + 8] != b"jp2c":
        length = struct.unpack_from(">I", frame, offset)[0]
        if length < 8:
            raise CorruptImage("a compressed frame is a damaged JP2 file")
        offset += length
    return offset + 8


def _uses_reversible_wavelet(frame: bytes, offset: int) -> bool:
    """Whether COD, somewhere in the main header from `offset`, names the 5-3 wavelet."""
    while frame[offset] == 0xFF and frame[offset + 1] != 0x90:  # SOT ends the main header
        length = struct.unpack_from(">H", frame, offset + 2)[0]
        if frame[offset + 1] == 0x52:
            return frame[offset + 13] == 1
        offset += 2 + length
    return False


def check_run_lengths(frame: bytes, expected: int) -> None:
    """Refuses an RLE frame (PS3.5 annex G) that would unpack to far more than `expected` bytes.

    Two packed bytes can unpack to 128. Only large frames are worth the walk. Raises CorruptImage.
    """
    if len(frame) <= _RLE_UNCHECKED:
        return
    unpacked, offset = 0, 64
    while offset < len(frame) and unpacked <= 2 * expected:
        header = frame[offset]
        if header < 128:
            unpacked, offset = unpacked + header + 1, offset + header + 2
        elif header > 128:
            unpacked, offset = unpacked + 257 - header, offset + 2
        else:
            offset += 1
    if unpacked > 2 * expected:
        raise CorruptImage("an RLE frame unpacks to more than the image holds")
