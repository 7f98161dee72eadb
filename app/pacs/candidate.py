"""A series that may be restored: what rules and built-in refusals judge it by, whichever way it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

TAGS = ("Modality", "BodyPartExamined", "StationName", "SeriesDescription")  # what rules may ask for


@dataclass(frozen=True)
class Candidate:
    """One series; its header is that of one of its instances, as far as it is known."""

    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    instances: int = 1
    header: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # by DICOM keyword

    def tag(self, keyword: str) -> str:
        """An attribute as text, empty where it has no value."""
        value = self.header.get(keyword)
        return "" if value is None else str(value).strip()
