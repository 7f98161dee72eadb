"""What an object is and where it belongs, read off its file without its pixels, whatever kind of object it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from models.errors import CorruptImage
from models.imaging.dicom.parser import inflate
from models.imaging.dicom.quiet import quiet

ATTRIBUTES = (
    "ImageType",
    "SOPClassUID",
    "Modality",
    "SeriesDescription",
    "StationName",
    "BodyPartExamined",
    "ContributingEquipmentSequence",
)
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")  # PS3.5 9.1
_PIXEL_GROUP = 0x7FE0


@dataclass(frozen=True)
class Head:
    """One object."""

    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    sop_class: str
    sop_instance: str
    syntax: str  # transfer syntax
    attributes: dict[str, Any]  # those of ATTRIBUTES that are there, by keyword


def read_head(path: Path, most_bytes: int) -> Head:
    """Reads the head of a Part 10 file; a deflated one may hold `most_bytes`. Raises CorruptImage, ImageTooLarge."""
    with quiet("read"), path.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            raise CorruptImage("no Part 10 header (128 bytes, then DICM)")
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        dataset = _read(stream, uid.UID(str(meta.get("TransferSyntaxUID") or "")), most_bytes)
        identity = [str(dataset.get(keyword) or "") for keyword in _IDENTITY]
        if not all(_UID.fullmatch(value) for value in identity):
            raise CorruptImage("an identifying UID is missing or malformed")
        attributes = {keyword: dataset.get(keyword) for keyword in ATTRIBUTES if keyword in dataset}
        study, series, sop_class, sop_instance = identity
        return Head(study, series, sop_class, sop_instance, str(meta.TransferSyntaxUID), attributes)


def _read(stream: BinaryIO, syntax: uid.UID, most_bytes: int) -> Dataset:
    """The dataset before its pixel group."""
    if not syntax:
        raise CorruptImage("the file meta information names no transfer syntax")
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        stream = BytesIO(inflate(stream.read(most_bytes + 1), most_bytes))
    known = not syntax.is_private and syntax.is_transfer_syntax
    implicit, little = (syntax.is_implicit_VR, syntax.is_little_endian) if known else (False, True)

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        return tag.group >= _PIXEL_GROUP

    return read_dataset(stream, implicit, little, stop_when=at_pixels)
