"""Headers of DICOM objects, for routing; pydicom is imported when the first one is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.imaging.dicom import Head, Kind


def kind_of(header: Mapping[str, Any]) -> Kind:
    """See `models.imaging.dicom.kind_of`. Raises CorruptImage for what is no header."""
    from models.imaging.dicom import kind_of

    return kind_of(header)


def read_head(path: Path, most_bytes: int) -> Head:
    """See `models.imaging.dicom.read_head`. Raises ImageError."""
    from models.imaging.dicom import read_head

    return read_head(path, most_bytes)


def transfer_syntaxes() -> list[str]:
    """UIDs of those that are read."""
    from models.imaging.dicom.syntax import SYNTAXES

    return list(SYNTAXES)
