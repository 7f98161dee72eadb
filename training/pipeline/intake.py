"""What a folder of noisy images holds: the files that can be read, as planes of real values, and those that cannot.

The content decides what a file is, as in the service. Colour becomes luminance. Padding takes a smooth
continuation of the pixels around it. The facts that say which images share a noise law come from the DICOM header, or
from the subfolder; what names a patient never leaves this module but as a number.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ImageError
from models.imaging.codec import decode
from models.imaging.image import Image
from models.imaging.values import fill
from training.data.noise import Plane
from training.data.source import LUMA
from training.pipeline.record import Refusal

ROOT = "images"  # the set of files that lie in no subfolder
HU = "HU"
MODALITIES = {  # words in a folder's name -> DICOM code of the modality
    "ct": "CT", "mr": "MR", "mri": "MR", "xray": "DX", "dx": "DX", "cr": "CR", "mammo": "MG", "mg": "MG", "us": "US",
    "ultrasound": "US", "pet": "PT", "pt": "PT", "nm": "NM", "oct": "OPT", "microscopy": "GM", "endoscopy": "ES",
    "colonoscopy": "ES", "dermoscopy": "DMS", "dermatology": "XC", "fundus": "OP", "histology": "SM", "pathology": "SM",
}  # fmt: skip
PHYSICS = ("SOPClassUID", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ScanningSequence",
           "SequenceVariant", "SliceThickness", "ImageType", "BodyPartExamined")  # fmt: skip
QUANTILES = np.linspace(0.0, 1.0, 257)


@dataclass(frozen=True)
class SetRule:
    """What the folder itself does not say about some sets; of several rules that fit a set the first counts."""

    sets: str  # set names, as a glob: "ct/*"
    modality: str = ""  # DICOM code; MR has Rician noise
    window: tuple[float, float] | None = None  # real values that map to 0 and 1
    group: str = ""  # pattern in the file's stem (its first group, or all of it): the patient

    def __post_init__(self) -> None:
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(f"rules of {self.sets}: group {self.group!r} is no pattern: {error}") from error


@dataclass(frozen=True, eq=False)
class Frame:
    """One readable plane of a file, and where it belongs; its pixels are read again when they are wanted."""

    path: Path
    source: str  # the path below the folder
    sha256: str
    set: str
    modality: str
    patient: tuple[str, ...]  # names a patient: never written anywhere
    frame: int
    rows: int
    columns: int
    quantiles: NDArray[np.float32] = field(repr=False)  # of the real values, at `QUANTILES`
    hounsfield: bool = False
    stored: str = ""  # type of the stored pixels: "uint8", ...
    colour: bool = False
    lossy: bool = False


@dataclass
class Intake:
    """The readable frames in the order of their files, and the files left out."""

    frames: list[Frame]
    refused: list[Refusal]


def list_files(folder: Path, include: tuple[str, ...], exclude: tuple[str, ...]) -> list[Path]:
    """All files in a folder and below by name; hidden ones and DICOMDIR are left out. Raises ValueError for none."""
    if not folder.is_dir():
        raise ValueError(f"{folder.name}: there is no such folder of images")
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/")) or path.name == "DICOMDIR"
        if not hidden and path.is_file() and matches(name, include) and not matches(name, exclude):
            found.append(path)
    if not found:
        raise ValueError(f"{folder.name}: the folder holds no file")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def take_in(folder: Path, paths: list[Path], rules: tuple[SetRule, ...], smallest: int, frames_max: int) -> Intake:
    """Reads every file once; equal files count once. No single file can end it."""
    intake, seen = Intake([], []), dict[str, str]()
    for path in paths:
        source = path.relative_to(folder).as_posix()
        try:
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 in seen:
                raise ValueError(f"the same file as {seen[sha256]}")
            frames = read_frames(path, source, sha256, decode(data, hint=path.name), rules, smallest, frames_max)
            intake.frames.extend(frames)
            seen[sha256] = source
        except (ImageError, ValueError, OSError) as error:
            intake.refused.append(Refusal(source, reason_of(error)))
    intake.frames[:] = part_types(intake.frames)
    return intake


def reason_of(error: Exception) -> str:
    """What went wrong with a file, on one line and without its path, which the text of an OSError holds."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split())


def part_types(frames: list[Frame]) -> list[Frame]:
    """Frames of one folder that are stored in several types lie on several scales: one set for each type."""
    types: dict[str, set[str]] = {}
    for frame in frames:
        types.setdefault(frame.set, set()).add(frame.stored)
    return [replace(f, set=f"{f.set} ({f.stored})") if len(types[f.set]) > 1 else f for f in frames]


def read_frames(
    path: Path, source: str, sha256: str, image: Image, rules: tuple[SetRule, ...], smallest: int, frames_max: int
) -> list[Frame]:
    """The frames of a decoded file that hold anything. Raises ValueError where none does, or for a small image."""
    rows, columns = image.pixels.shape[1:3]
    if min(rows, columns) < smallest:
        raise ValueError(f"{rows} x {columns} pixels: at least {smallest} x {smallest} are needed")
    facts = describe(source, image, rules)
    chosen = np.unique(np.linspace(0, image.frames - 1, min(image.frames, frames_max)).astype(int))
    found = []
    for index in chosen.tolist():
        plane = real_plane(image, index)
        quantiles = np.quantile(plane, QUANTILES).astype(np.float32)
        if quantiles[0] < quantiles[-1]:
            found.append(
                Frame(path, source, sha256, frame=index, rows=rows, columns=columns, quantiles=quantiles, **facts)
            )
    if not found:
        raise ValueError("constant: every pixel has the same value")
    return found


def describe(source: str, image: Image, rules: tuple[SetRule, ...]) -> dict[str, Any]:
    """Set, modality and patient of a file, and what its pixels are."""
    parent, _, name = source.rpartition("/")
    tags = image.source if image.format == "dicom" else None
    modality = str(tags.get("Modality") or "OT") if tags is not None else guess_modality(parent)
    group = physics(modality, tags, image) if tags is not None else parent or ROOT
    rule = rule_for(group, rules)
    patient = patient_of(parent, name, rule.group)
    if tags is not None and (identity := str(tags.get("PatientID") or tags.get("StudyInstanceUID") or "").strip()):
        patient = ("dicom", identity)
    return {
        "set": group,
        "modality": rule.modality or modality,
        "patient": patient,
        "hounsfield": image.values.unit == HU and image.values.scale > 0,
        "stored": str(image.pixels.dtype),
        "colour": image.samples > 1,
        "lossy": image.lossy,
    }


def physics(modality: str, tags: Any, image: Image) -> str:
    """Name of the set of a DICOM image: the modality and a hash of what decides its noise law.

    Scanner, reconstruction kernel or pulse sequence, slice thickness, kind of image and unit. Free text
    (SeriesDescription, ProtocolName) is left out: it differs between sites for one and the same law.
    """
    facts = [str(tags.get(keyword, "")).strip().upper() for keyword in PHYSICS] + [image.values.unit]
    digest = hashlib.sha256("|".join(facts).encode()).hexdigest()
    return f"{re.sub('[^A-Z0-9]', '', modality.upper()) or 'OT'}-{digest[:8]}"


def guess_modality(folder: str) -> str:
    """DICOM code from the words in a folder's path, the deepest first; OT (other) where none says."""
    words = re.split(r"[^a-z0-9]+", folder.lower())
    return next((MODALITIES[word] for word in reversed(words) if word in MODALITIES), "OT")


def patient_of(folder: str, name: str, pattern: str) -> tuple[str, ...]:
    """What a raster file says about the patient: what the pattern finds in its name, in whatever folder it lies.

    Without that, its folder and all of its name but the last number and the separators about it.
    """
    stem = name.rsplit(".", 1)[0]
    if pattern and (found := re.search(pattern, stem)):
        return "pattern", found.group(1) if found.groups() else found.group()
    return "file", folder, re.sub(r"[\W_]*\d*[\W_]*$", "", stem)


def rule_for(name: str, rules: tuple[SetRule, ...]) -> SetRule:
    """The first rule that fits a set, or the folder that `part_types` made several sets of."""
    folder = re.sub(r" \((u?int|float)\d+\)$", "", name)
    return next((r for r in rules if fnmatchcase(name, r.sets) or fnmatchcase(folder, r.sets)), SetRule(name))


def real_plane(image: Image, index: int) -> NDArray[np.float64]:
    """One frame (H, W) in real values, bright where the image is bright; colour as luminance, padding filled."""
    values, pixels = image.values, image.pixels[index].astype(np.float64)
    if values.scale > 0:
        real = pixels * values.slope + values.intercept
    else:  # the smallest stored value is white
        real = (pixels * values.scale + values.offset) * values.real_per_unit
    plane = real[:, :, 0] if image.samples == 1 else real @ LUMA.astype(np.float64)
    if image.padding is not None and image.padding[index].any():
        plane = fill(plane, image.padding[index])
    return np.asarray(plane)


def read_planes(frames: list[Frame], low: float, high: float) -> Iterator[tuple[Frame, Plane]]:
    """Frames of one file with their planes on the unit scale, low to 0 and high to 1, not clipped."""
    image = decode(frames[0].path.read_bytes(), hint=frames[0].path.name)
    for frame in frames:
        yield frame, ((real_plane(image, frame.frame) - low) / (high - low)).astype(np.float32)
