"""Bytes to a pydicom Dataset, with every limit checked before pixel data are touched (PS3.10)."""

from __future__ import annotations

import zlib
from io import SEEK_END, BytesIO
from typing import BinaryIO, NamedTuple

from pydicom import uid
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import BaseTag

from models.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from models.imaging.dicom.scope import check_header, image_size
from models.imaging.dicom.syntax import SYNTAXES
from models.imaging.image import Limits

_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_GROUP = 0x7FE0
_PIXEL_DATA = 0x7FE00010
_DELIMITER_BYTES = 8  # of a value of undefined length


class Span(NamedTuple):
    """Where the value of the pixel data lies in a file, bytes."""

    start: int
    length: int


def parse_dicom(data: bytes, limits: Limits) -> Dataset:
    """The dataset of a Part 10 file, `file_meta` attached, known to hold an image in scope.

    Raises UnsupportedImage, ImageTooLarge or CorruptImage; see `scope` for the reasons.
    """
    if len(data) > limits.bytes:
        raise ImageTooLarge(f"the DICOM file has {len(data)} bytes; at most {limits.bytes} are read")
    stream: BinaryIO = BytesIO(data)
    meta = read_meta(stream)
    if meta.TransferSyntaxUID == uid.DeflatedExplicitVRLittleEndian:
        stream = BytesIO(_inflate(data[stream.tell() :], limits.bytes))
    dataset = read_header(stream, meta, limits)
    _read_pixel_group(stream, dataset)
    return dataset


def read_meta(stream: BinaryIO) -> FileMetaDataset:
    """The file meta information, its transfer syntax one that is read; leaves `stream` at the dataset."""
    if stream.read(132)[128:] != b"DICM":
        raise UnsupportedImage("invalid_dicom", "not a DICOM file: there is no Part 10 header (128 bytes, then DICM)")
    meta = FileMetaDataset(read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2))
    meta.TransferSyntaxUID = _transfer_syntax(meta)
    return meta


def read_header(stream: BinaryIO, meta: FileMetaDataset, limits: Limits) -> Dataset:
    """The dataset before its pixel group, in scope and within the limits; leaves `stream` there."""
    dataset = _read_header(stream, meta.TransferSyntaxUID)
    dataset.file_meta = meta
    check_header(dataset)
    _check_limits(dataset, limits)
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
        raise CorruptImage("truncated: the deflated dataset ends early", "truncated")
    return unpacked


def _read_header(stream: BinaryIO, syntax: uid.UID) -> Dataset:
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
            raise CorruptImage("truncated: the file ends within an attribute", "truncated")


def _check_limits(dataset: Dataset, limits: Limits) -> None:
    rows, columns, frames = image_size(dataset)
    if frames > limits.frames:
        raise ImageTooLarge(f"the object has {frames} frames; at most {limits.frames} are read")
    if rows * columns * frames > limits.pixels:
        raise ImageTooLarge(f"{frames} frames of {rows} x {columns} pixels; at most {limits.pixels} pixels are read")


def locate_pixels(stream: BinaryIO, dataset: Dataset) -> Span:
    """Where the pixel data lie; adds what follows them to `dataset`, but not them. Raises CorruptImage."""
    implicit, little = dataset.original_encoding
    found, tail = None, Dataset()
    try:
        for element in data_element_generator(stream, bool(implicit), bool(little), defer_size=0):
            if element.tag != _PIXEL_DATA:
                tail[element.tag] = _fetched(stream, element)
            elif isinstance(element, RawDataElement):
                open_ended = element.length == _UNDEFINED_LENGTH
                end = stream.tell() - _DELIMITER_BYTES if open_ended else element.value_tell + element.length
                found = Span(element.value_tell, end - element.value_tell)
    except EOFError:
        raise CorruptImage("truncated: the pixel data have no end", "truncated") from None
    if found and found.start + found.length > stream.seek(0, SEEK_END):
        raise CorruptImage("truncated: the file ends within an attribute", "truncated")
    _check_complete(tail)
    dataset.update(tail)
    if not found or not found.length:
        raise CorruptImage("truncated: the object describes an image but holds no pixel data", "truncated")
    return found


def _fetched(stream: BinaryIO, element: RawDataElement | DataElement) -> RawDataElement | DataElement:
    """An element with the value that was skipped; leaves `stream` where it is."""
    if not isinstance(element, RawDataElement) or element.value is not None:
        return element
    here = stream.tell()
    stream.seek(element.value_tell)
    size = here - _DELIMITER_BYTES - element.value_tell if element.length == _UNDEFINED_LENGTH else element.length
    value = stream.read(size)
    stream.seek(here)
    return element._replace(value=value)


def _read_pixel_group(stream: BinaryIO, dataset: Dataset) -> None:
    """Adds the pixel data and what follows them. Unlike pydicom, a missing end is an error."""
    implicit, little = dataset.original_encoding
    try:
        tail = Dataset({e.tag: e for e in data_element_generator(stream, bool(implicit), bool(little))})
    except EOFError:
        raise CorruptImage("truncated: the pixel data have no end", "truncated") from None
    _check_complete(tail)
    dataset.update(tail)
    if not dataset.get("PixelData"):
        raise CorruptImage("truncated: the object describes an image but holds no pixel data", "truncated")
