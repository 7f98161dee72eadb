"""What a DICOM file says it is: kind, identity and patient, read without its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from models.imaging.dicom.kind import Kind, kind_of
from models.imaging.dicom.quiet import quiet

_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_KIND = ("Modality", "ImageType", "SeriesDescription", "ContributingEquipmentSequence")


@dataclass(frozen=True)
class Label:
    """Who and what an object is; texts are empty where it does not tell."""

    instance: str
    series: str
    study: str
    patient: tuple[str, ...]  # identifier, issuer, name, birth date, sex
    kind: Kind


def read_label(path: Path) -> Label:
    """The label of a Part 10 file. Raises CorruptImage."""
    with quiet("read"):
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=[*_PATIENT, *_IDENTITY, *_KIND])
        return Label(
            instance=_text(dataset, "SOPInstanceUID"),
            series=_text(dataset, "SeriesInstanceUID"),
            study=_text(dataset, "StudyInstanceUID"),
            patient=tuple(_text(dataset, keyword) for keyword in _PATIENT),
            kind=kind_of(dataset),
        )


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")
