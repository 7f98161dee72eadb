"""The files that the stages of a pipeline run meet through: `audit/audit.json` and `preliminary/table.json`.

Every path is relative to the run's folder, every plane float32 (H, W) on the unit scale of its set, unclipped.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.config import build
from training.data.noise import Plane

PIPELINE = "pipeline.json"  # of the whole run: its configuration, folders and provenance
AUDIT = Path("audit", "audit.json")
TABLE = Path("preliminary", "table.json")
PRELIMINARY_IMAGES = Path("preliminary", "images")


@dataclass(frozen=True)
class AuditedImage:
    """One plane of an audit."""

    id: str  # "n000001"
    file: str  # "audit/noisy/n000001.npy"
    sha256: str  # of the original file
    source: str  # path of the original, relative to the folder that was read
    set: str  # a key of the audit's sets
    modality: str
    group: str  # opaque hash of the patient or study: never split
    split: str  # "train" or "test"
    rows: int
    columns: int
    low: float  # real values that map to 0 ...
    high: float  # ... and to 1
    frame: int = 0


class NoisyImage(AuditedImage):
    """One noisy plane of a denoiser's audit."""


@dataclass(frozen=True)
class CleanImage:
    """One clean natural plane of the audit."""

    id: str  # "c000001"
    file: str
    sha256: str
    source: str
    split: str


@dataclass(frozen=True)
class Refusal:
    """A file that was left out, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """What the images of one set have in common."""

    modality: str
    images: int
    low: float
    high: float
    correlation: list[list[float]]  # K x K, K odd, of the noise at lags -K//2 .. K//2; 1 in the middle
    lag1: tuple[float, float]  # correlation with the neighbour down and across
    stride: int = 1  # of pixel-shuffle downsampling in training, 1 to 5
    rician: bool = False
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= 5:
            raise ValueError(f"stride: {self.stride} is not within 1 to 5")


@dataclass(frozen=True)
class Audit:
    """Stage 0's whole record."""

    images: tuple[NoisyImage, ...]
    clean: tuple[CleanImage, ...] = ()
    refused: tuple[Refusal, ...] = ()
    sets: dict[str, ImageSet] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := {image.set for image in self.images} - set(self.sets):
            raise ValueError(f"audit: no record of the set {sorted(unknown)[0]!r}")

    def noisy(self, split: str | None = None) -> list[NoisyImage]:
        """The noisy images of one split, or all of them, in the audit's order."""
        return [image for image in self.images if split in (None, image.split)]


@dataclass(frozen=True)
class NoiseRow:
    """The noise of one image as stage 1 found it: variance a max(s, 0) + b at signal s, on the unit scale.

    `raw_` values are what the likelihood ended with, model error included; the others are corrected on
    the image's flat pixels and are the ones to use.
    """

    id: str
    set: str
    a: float
    b: float
    level: float  # standard deviation at the image's median signal
    raw_a: float
    raw_b: float
    raw_level: float
    bias_corrected: bool  # False: too few flat pixels, so a and b are the raw ones
    fit_residual: float  # root mean square of log(observed / fitted deviation) over the signal's range
    share_flat: float  # share of the pixels that were used, 0 to 1


def read_json(path: Path) -> Any:
    """The JSON document of a file. Raises ValueError naming the file if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: not a JSON document: {error}") from error


def write_json(path: Path, document: Any) -> None:
    """Writes under a temporary name first, so that a kill leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_audit(out: Path) -> Audit:
    """`audit/audit.json` of a run. Raises ValueError naming the key that is wrong."""
    raw = read_json(out / AUDIT)
    raw["sets"] = {name: build(ImageSet, record, f"sets.{name}") for name, record in raw.get("sets", {}).items()}
    return build(Audit, raw, AUDIT.name)


def write_audit(out: Path, audit: Audit) -> None:
    """Writes `audit/audit.json`."""
    write_json(out / AUDIT, dataclasses.asdict(audit))


def read_table(out: Path) -> list[NoiseRow]:
    """`preliminary/table.json` of a run, in the audit's order."""
    return [build(NoiseRow, row, f"{TABLE.name}[{i}]") for i, row in enumerate(read_json(out / TABLE))]


def write_table(out: Path, rows: list[NoiseRow]) -> None:
    """Writes `preliminary/table.json`."""
    write_json(out / TABLE, [dataclasses.asdict(row) for row in rows])


def read_plane(out: Path, file: str) -> Plane:
    """A plane that the audit or a stage wrote. Raises ValueError if it is not float32 (H, W)."""
    plane: Plane = np.load(out / file, allow_pickle=False)
    if plane.dtype != np.float32 or plane.ndim != 2:
        raise ValueError(f"{file}: {plane.dtype} {plane.shape} is not a float32 plane")
    return plane


def write_plane(path: Path, plane: Plane) -> None:
    """Writes a float32 plane (H, W) as .npy, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as stream:
        np.save(stream, plane.astype(np.float32, copy=False), allow_pickle=False)
    os.replace(partial, path)
