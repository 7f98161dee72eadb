"""A series that may be restored: what rules and built-in refusals judge it by, whichever way it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

TAGS = ("Modality", "BodyPartExamined", "StationName", "SeriesDescription")  # what rules may ask for


@dataclass(frozen=True)
class Candidate:
    """One series; its attributes are those of one of its instances."""

    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    instances: int = 1
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # by keyword; those that have a value
    sop_class: str = ""  # empty where unknown
    image_type: tuple[str, ...] = ()
    ours: bool = False  # its header names this service as what made it
