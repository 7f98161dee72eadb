"""What a DICOM file says it is: class, identity and patient, read without its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from models.imaging.dicom.quiet import quiet

_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "ImageType")
_OURS = "ContributingEquipmentSequence"
_MANUFACTURER = "MedRestore"
_PROCESSING_EQUIPMENT = "109102"  # CID 7005


@dataclass(frozen=True)
class Label:
    """Who and what an object is; texts are empty where it does not tell."""

    sop_class: str
    instance: str
    series: str
    study: str
    image_type: tuple[str, ...]
    patient: tuple[str, ...]  # identifier, issuer, name, birth date, sex
    ours: bool  # derived by this product


def read_label(path: Path) -> Label:
    """The label of a Part 10 file. Raises CorruptImage."""
    with quiet("read"):
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=[*_PATIENT, *_IDENTITY, _OURS])
        return Label(
            sop_class=_text(dataset, "SOPClassUID"),
            instance=_text(dataset, "SOPInstanceUID"),
            series=_text(dataset, "SeriesInstanceUID"),
            study=_text(dataset, "StudyInstanceUID"),
            image_type=_texts(dataset.get("ImageType")),
            patient=tuple(_text(dataset, keyword) for keyword in _PATIENT),
            ours=_is_ours(dataset),
        )


def reason_to_skip(sop_class: str, image_type: tuple[str, ...]) -> str | None:
    """Why an object is none of a series' images: "no_pixel_data", "secondary_capture" or "localizer"; else None."""
    name = UID(sop_class).name if sop_class else ""
    if name != sop_class and "Image Storage" not in name and "Volume Storage" not in name:
        return "no_pixel_data"
    if "Secondary Capture" in name or "SCREEN SAVE" in image_type:
        return "secondary_capture"
    return "localizer" if "LOCALIZER" in image_type else None


def _is_ours(dataset: Dataset) -> bool:
    for item in dataset.get(_OURS) or []:
        purposes = item.get("PurposeOfReferenceCodeSequence") or []
        codes = {_text(code, "CodeValue") for code in purposes}
        if _text(item, "Manufacturer") == _MANUFACTURER and _PROCESSING_EQUIPMENT in codes:
            return True
    return False


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")


def _texts(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    return tuple(str(item) for item in value)
