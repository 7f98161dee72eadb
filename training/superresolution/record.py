"""What the audit of a super-resolver's run found: `audit/audit.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from training.config import build
from training.pipeline.record import AUDIT, AuditedImage, Refusal, read_json, write_json


@dataclass(frozen=True)
class PictureSet:
    """What the images of one set have in common."""

    modality: str
    images: int
    low: float  # real values that map to 0 ...
    high: float  # ... and to 1
    photographs: bool  # or at least stored as such: 8 bits, over the whole of their range
    noise: float  # their own, on the unit scale: the median of a few images
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureAudit:
    """Stage audit's whole record. Images of high and of low resolution are not paired."""

    high: tuple[AuditedImage, ...]
    low: tuple[AuditedImage, ...] = ()
    refused: tuple[Refusal, ...] = ()
    high_sets: dict[str, PictureSet] = field(default_factory=dict)
    low_sets: dict[str, PictureSet] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def of_split(images: tuple[AuditedImage, ...], split: str) -> list[AuditedImage]:
    """The images of one split, in the audit's order."""
    return [image for image in images if image.split == split]


def read_pictures(out: Path) -> PictureAudit:
    """`audit/audit.json` of a run. Raises ValueError naming the key that is wrong."""
    raw = read_json(out / AUDIT)
    for sets in ("high_sets", "low_sets"):
        raw[sets] = {name: build(PictureSet, record, f"{sets}.{name}") for name, record in raw[sets].items()}
    return build(PictureAudit, raw, AUDIT.name)


def write_pictures(out: Path, audit: PictureAudit) -> None:
    """Writes `audit/audit.json`."""
    write_json(out / AUDIT, dataclasses.asdict(audit))
