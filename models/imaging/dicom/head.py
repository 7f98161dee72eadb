"""What an object is and to whom it belongs, read off its file without its pixels, whatever kind of object it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag

from models.errors import CorruptImage, ImageTooLarge
from models.imaging.dicom.kind import Kind, kind_of
from models.imaging.dicom.measured import Measured
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
_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_WANTED = {int(Tag(keyword)) for keyword in (*ATTRIBUTES, *_PATIENT, *_IDENTITY)}
_VALUE_BYTES = 256 * 1024  # of one of them
_UNDEFINED_LENGTH = 0xFFFFFFFF
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
    patient: tuple[str, ...]  # identifier, issuer, name, birth date, sex; empty where it does not tell
    attributes: dict[str, Any]  # those of ATTRIBUTES that are there, by keyword

    @property
    def kind(self) -> Kind:
        """Raises CorruptImage."""
        return kind_of(self.attributes)


def read_head(path: Path, most_bytes: int) -> Head:
    """Reads the head of a Part 10 file. Raises CorruptImage, and ImageTooLarge where it, or what a deflated file
    holds, has more than `most_bytes`."""
    with quiet("read"), path.open("rb") as file:
        stream = cast(BinaryIO, Measured(file, most_bytes))
        if stream.read(132)[128:] != b"DICM":
            raise CorruptImage("no Part 10 header (128 bytes, then DICM)")
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        syntax = uid.UID(str(meta.get("TransferSyntaxUID") or ""))
        if syntax == uid.DeflatedExplicitVRLittleEndian:
            stream = BytesIO(inflate(file.read(most_bytes + 1), most_bytes))
        dataset = _read(stream, syntax)
        identity = [_text(dataset, keyword) for keyword in _IDENTITY]
        if not all(_UID.fullmatch(value) for value in identity):
            raise CorruptImage("an identifying UID is missing or malformed")
        patient = tuple(_text(dataset, keyword) for keyword in _PATIENT)
        attributes = {keyword: dataset.get(keyword) for keyword in ATTRIBUTES if keyword in dataset}
        study, series, sop_class, sop_instance = identity
        return Head(study, series, sop_class, sop_instance, str(syntax), patient, attributes)


def _read(stream: BinaryIO, syntax: uid.UID) -> Dataset:
    """What is wanted of the dataset before its pixel group; other values are passed over."""
    if not syntax:
        raise CorruptImage("the file meta information names no transfer syntax")
    known = not syntax.is_private and syntax.is_transfer_syntax
    implicit, little = (syntax.is_implicit_VR, syntax.is_little_endian) if known else (False, True)

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in _WANTED and _VALUE_BYTES < length < _UNDEFINED_LENGTH:
            raise ImageTooLarge(f"a value of more than {_VALUE_BYTES} bytes that says what the object is")
        return tag.group >= _PIXEL_GROUP

    return read_dataset(stream, implicit, little, stop_when=at_pixels, specific_tags=list(_WANTED))


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")
