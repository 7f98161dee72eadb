"""Bytes to a pydicom Dataset, with every limit checked before pixel data are touched (PS3.10)."""

from __future__ import annotations

import zlib
from io import BytesIO

from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import BaseTag

from models.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from models.imaging.dicom.scope import check_header, image_size
from models.imaging.dicom.syntax import SYNTAXES
from models.imaging.image import Limits

_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_GROUP = 0x7FE0


def parse_dicom(data: bytes, limits: Limits) -> Dataset:
    """The dataset of a Part 10 file, `file_meta` attached, known to hold an image in scope.

    Raises UnsupportedImage, ImageTooLarge or CorruptImage; see `scope` for the reasons.
    """
    if len(data) > limits.bytes:
        raise ImageTooLarge(f"the DICOM file has {len(data)} bytes; at most {limits.bytes} are read")
    if data[128:132] != b"DICM":
        raise UnsupportedImage("invalid_dicom", "not a DICOM file: there is no Part 10 header (128 bytes, then DICM)")
    stream = BytesIO(data)
    stream.seek(132)
    meta = FileMetaDataset(read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2))
    syntax = _transfer_syntax(meta)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        stream = BytesIO(_inflate(data[stream.tell() :], limits.bytes))
    dataset = _read_header(stream, syntax)
    dataset.file_meta = meta
    check_header(dataset)
    _check_limits(dataset, limits)
    _read_pixel_group(stream, dataset)
    return dataset


def _transfer_syntax(meta: Dataset) -> uid.UID:
    syntax = meta.get("TransferSyntaxUID")
    if not isinstance(syntax, str) or not syntax:
        raise UnsupportedImage("invalid_dicom", "the file meta information names no transfer syntax")
    if syntax not in SYNTAXES:
        name = uid.UID(syntax).name if uid.UID(syntax).is_transfer_syntax else "an unknown one"
        raise UnsupportedImage("unsupported_transfer_syntax", f"transfer syntax not read here: {name}")
    return uid.UID(syntax)


def _inflate(packed: bytes, most: int) -> bytes:
    """Inflates a deflated dataset (PS3.5 A.5), refusing to grow beyond `most` bytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        unpacked = inflater.decompress(packed, most + 1)
    except zlib.error:
        raise CorruptImage("the deflated dataset is damaged") from None
    if len(unpacked) > most:
        raise ImageTooLarge(f"the deflated dataset holds more than the {most} bytes that are read")
    if not inflater.eof:
        raise CorruptImage("truncated: the deflated dataset ends early")
    return unpacked


def _read_header(stream: BytesIO, syntax: uid.UID) -> Dataset:
    """Everything before the pixel group."""

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        return tag.group >= _PIXEL_GROUP

    dataset = read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=at_pixels)
    _check_complete(dataset)
    return dataset


def _check_complete(dataset: Dataset) -> None:
    """A value shorter than its length says: the file was cut there."""
    for element in dataset.elements():
        if not isinstance(element, RawDataElement) or element.length == _UNDEFINED_LENGTH:
            continue
        if len(element.value or b"") < element.length:
            raise CorruptImage("truncated: the file ends within an attribute")


def _check_limits(dataset: Dataset, limits: Limits) -> None:
    rows, columns, frames = image_size(dataset)
    if frames > limits.frames:
        raise ImageTooLarge(f"the object has {frames} frames; at most {limits.frames} are read")
    if rows * columns * frames > limits.pixels:
        raise ImageTooLarge(f"{frames} frames of {rows} x {columns} pixels; at most {limits.pixels} pixels are read")


def _read_pixel_group(stream: BytesIO, dataset: Dataset) -> None:
    """Adds the pixel data and what follows them. Unlike pydicom, a missing end is an error."""
    implicit, little = dataset.original_encoding
    try:
        tail = Dataset({e.tag: e for e in data_element_generator(stream, bool(implicit), bool(little))})
    except EOFError:
        raise CorruptImage("truncated: the pixel data have no end") from None
    _check_complete(tail)
    dataset.update(tail)
    if not dataset.get("PixelData"):
        raise CorruptImage("truncated: the object describes an image but holds no pixel data")
