"""Rows of a PACS's lists, out of the DICOM JSON model (PS3.18 F.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from app.pacs.errors import PacsMalformed

LARGEST_US, LARGEST_IS = 2**16 - 1, 2**31 - 1  # PS3.5 6.2
UID = re.compile(r"[0-9.]{1,64}")

# Keywords of a series that are asked for by name, since PS3.18 table 10.6.3-4 does not have servers send them.
SERIES_FIELDS = (
    "BodyPartExamined",
    "StationName",
    "SeriesDescription",
    "SeriesNumber",
    "ImageType",
    "NumberOfSeriesRelatedInstances",
)
# Attributes of an instance that decide about its series, and those of one item of ContributingEquipmentSequence.
HEADER = {
    "00080008": "ImageType",
    "00080016": "SOPClassUID",
    "00080060": "Modality",
    "0008103E": "SeriesDescription",
    "00081010": "StationName",
    "00180015": "BodyPartExamined",
}
EQUIPMENT = {"00080070": "Manufacturer", "00181002": "DeviceUID", "00181020": "SoftwareVersions"}
INSTANCE_FIELDS = ("SOPClassUID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns", "ImageType")


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """One series. Texts are empty, numbers None where the PACS does not tell."""

    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    modality: str = ""
    body_part: str = ""
    station: str = ""
    description: str = ""
    image_type: tuple[str, ...] = ()  # of one instance
    study_date: str = ""
    number: int | None = None
    instances: int | None = None


@dataclass(frozen=True, kw_only=True)
class InstanceRow:
    """One instance of a series."""

    sop_class: str
    sop_instance: str
    number: int | None = None
    frames: int = 1
    rows: int | None = None
    columns: int | None = None
    image_type: tuple[str, ...] = ()


def series_row(item: Any) -> SeriesRow | None:
    """None for a row without valid UIDs. Raises PacsMalformed for what is no row."""
    study, series = text(item, "0020000D"), text(item, "0020000E")
    if not (UID.fullmatch(study) and UID.fullmatch(series)):
        return None
    return SeriesRow(
        study=study,
        series=series,
        modality=text(item, "00080060"),
        body_part=text(item, "00180015"),
        station=text(item, "00081010"),
        description=text(item, "0008103E"),
        image_type=texts(item, "00080008"),
        study_date=text(item, "00080020"),
        number=number(item, "00200011"),
        instances=number(item, "00201209", 0),
    )


def instance_row(item: Any) -> InstanceRow:
    """Raises PacsMalformed."""
    return InstanceRow(
        sop_class=text(item, "00080016"),
        sop_instance=uid(item, "00080018"),
        number=number(item, "00200013"),
        frames=number(item, "00280008", 1) or 1,
        rows=number(item, "00280010", 1, LARGEST_US),
        columns=number(item, "00280011", 1, LARGEST_US),
        image_type=texts(item, "00080008"),
    )


def header(item: Any) -> dict[str, Any]:
    """What decides about a series, by DICOM keyword, out of an instance's metadata; values joined by backslashes.

    Raises PacsMalformed.
    """
    makers = [_texts(maker, EQUIPMENT) for maker in values(item, "0018A001")]
    return {**_texts(item, HEADER), "ContributingEquipmentSequence": makers}


def _texts(item: Any, keywords: dict[str, str]) -> dict[str, str]:
    return {keyword: "\\".join(texts(item, tag)) for tag, keyword in keywords.items()}


def values(item: Any, tag: str) -> list[Any]:
    """The values of an element, none where it is absent or empty. Raises PacsMalformed."""
    element = item.get(tag, {}) if isinstance(item, dict) else None
    found = element.get("Value") or [] if isinstance(element, dict) else None
    if not isinstance(found, list):
        raise PacsMalformed("json", "not the DICOM JSON model")
    return found


def texts(item: Any, tag: str) -> tuple[str, ...]:
    """All values as text."""
    return tuple(value.strip(" \0") if isinstance(value, str) else "" for value in values(item, tag))


def text(item: Any, tag: str) -> str:
    """The first value as text."""
    return next(iter(texts(item, tag)), "")


def number(item: Any, tag: str, least: int = -LARGEST_IS - 1, most: int = LARGEST_IS) -> int | None:
    """The first value as an integer, which IS may write as text; None where it is none, or out of range."""
    value = next(iter(values(item, tag)), None)
    try:
        found = int(value) if isinstance(value, (str, int, float)) else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and least <= found <= most else None


def uid(item: Any, tag: str) -> str:
    """A UID that must be there. Raises PacsMalformed."""
    value = text(item, tag)
    if not UID.fullmatch(value):
        raise PacsMalformed("json", "a row without a valid UID")
    return value
