"""Stage 0: reads images, splits them by patient, puts them on the unit scale and measures the colour of their noise.

Writes `audit/audit.json` and every plane as float32 .npy, so that no later stage needs an original. A call that was
stopped goes on with the planes that are there. Colour images are taken as their luminance, with a warning: the
noise of their channels was mixed where they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.pipeline.image_set import Scale, measure_sets, scale_of
from training.pipeline.intake import Frame, Intake, SetRule, list_files, read_planes, rule_for, take_in
from training.pipeline.partition import partition
from training.pipeline.photograph import prepare_clean
from training.pipeline.record import (
    AUDIT,
    Audit,
    AuditedImage,
    NoisyImage,
    Refusal,
    read_audit,
    read_json,
    write_audit,
    write_json,
    write_plane,
)

PLAN = Path("audit", "plan.json")
NOISY = Path("audit", "noisy")
IMAGES_MIN = 3
SHOWN = 5  # files left out that are named; the others stand in the record


@dataclass(frozen=True)
class AuditConfig:
    """How folders become sets of planes; globs match paths below the folder, as in "ct/*"."""

    include: tuple[str, ...] = ("*",)  # of the noisy files
    exclude: tuple[str, ...] = ()
    rules: tuple[SetRule, ...] = ()  # what folders alone do not say of their images
    smallest: int = 64  # rows and columns
    frames: int = 16  # of one file, evenly spaced
    test_share: float = 0.15
    correlation_images: int = 64  # of one set that its noise correlation is measured on
    clean_include: tuple[str, ...] = ("*",)
    clean_exclude: tuple[str, ...] = ()
    clean_test: tuple[str, ...] = ()  # photographs that are held back; none named: a share of them, by lot
    clean_reduce: int = 1  # area reduction of the photographs, which averages their own noise and JPEG blocks away
    clean_level: float = 0.03  # own noise, on the unit scale, from which on a photograph is left out

    def __post_init__(self) -> None:
        if not 0 <= self.test_share <= 0.5:
            raise ValueError(f"audit.test_share: {self.test_share} is not within 0 to 0.5")
        if self.smallest < 32 or min(self.frames, self.correlation_images, self.clean_reduce) < 1:
            raise ValueError("audit: smallest >= 32, and frames, correlation_images and clean_reduce >= 1 are needed")


def run(out: Path, config: AuditConfig, *, noisy: Path, clean: Path, seed: int) -> None:
    """Makes `audit/` of a run from a folder of noisy images and one of clean photographs.

    Files that cannot be used are listed as refused, with the reason. Raises ValueError where a folder holds no
    file, no photograph can be used, or fewer than three noisy images can.
    """
    paths = list_files(noisy, config.include, config.exclude)
    intake = take_in(noisy, tqdm(paths, "reading", disable=None), config.rules, config.smallest, config.frames)
    require_enough(noisy, intake)
    scales = {name: scale_of(members, rule_for(name, config.rules)) for name, members in by_set(intake.frames).items()}
    groups = groups_of(intake.frames)
    sides, warnings = partition([frame.set for frame in intake.frames], groups, config.test_share, seed)
    images = [
        NoisyImage(**facts(NOISY, number, frame, scales[frame.set], group, side))
        for number, (frame, group, side) in enumerate(zip(intake.frames, groups, sides, strict=True), 1)
    ]
    write_planes(out, NOISY, images, intake.frames, PLAN)
    sets = measure_sets(out, images, by_set(intake.frames), scales, config.correlation_images)
    photographs, refused = prepare_clean(out, clean, config, {image.sha256 for image in images}, seed)
    write_audit(out, Audit(tuple(images), tuple(photographs), (*intake.refused, *refused), sets, tuple(warnings)))


def findings(out: Path) -> Iterator[str]:
    """What a person should know of an audit: what is used, what was left out and why, what to be wary of."""
    audit = read_audit(out)
    yield f"noisy images: {len(audit.images)}, sets: {len(audit.sets)}, photographs: {len(audit.clean)}"
    yield from left_out(audit.refused)
    yield from (f"note: {warning}" for warning in audit.warnings)
    yield from (f"note: {name}: {warning}" for name, found in audit.sets.items() for warning in found.warnings)


def left_out(refused: Sequence[Refusal]) -> Iterator[str]:
    """The files that cannot be used: how many, and the first of them."""
    if refused:
        yield f"files left out: {len(refused)}; audit.json lists them all"
        yield from (f"left out: {refusal.source}: {refusal.reason}" for refusal in refused[:SHOWN])


def require_enough(folder: Path, intake: Intake) -> None:
    """Raises ValueError, with the first reasons, where too few images are left."""
    if len(intake.frames) < IMAGES_MIN:
        reasons = "; ".join(f"{refusal.source}: {refusal.reason}" for refusal in intake.refused[:SHOWN])
        raise ValueError(
            f"{folder.name}: {len(intake.frames)} of its images can be used, at least {IMAGES_MIN} are needed"
            + (f" (left out: {reasons})" if reasons else "")
        )


def by_set(frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Frames of each set, sets by name."""
    found: dict[str, list[Frame]] = {}
    for frame in frames:
        found.setdefault(frame.set, []).append(frame)
    return dict(sorted(found.items()))


def groups_of(frames: Sequence[Frame]) -> list[str]:
    """Patients as numbers in the order they first occur: a hash of a patient's number could be guessed back."""
    numbers: dict[tuple[str, ...], int] = {}
    return [f"g{numbers.setdefault(frame.patient, len(numbers) + 1):05}" for frame in frames]


def facts(folder: Path, number: int, frame: Frame, scale: Scale, group: str, side: str) -> dict[str, Any]:
    """What the audit says of one plane, by the names of `AuditedImage`; its id begins as the folder's name does."""
    name = f"{folder.name[0]}{number:06}"
    return {
        "id": name,
        "file": (folder / f"{name}.npy").as_posix(),
        "sha256": frame.sha256,
        "source": frame.source,
        "set": frame.set,
        "modality": frame.modality,
        "group": group,
        "split": side,
        "rows": frame.rows,
        "columns": frame.columns,
        "low": scale.low,
        "high": scale.high,
        "frame": frame.frame,
    }


def write_planes(
    out: Path, folder: Path, images: Sequence[AuditedImage], frames: Sequence[Frame], plan_file: Path
) -> None:
    """Writes the planes that are not there yet; planes of another plan are deleted first."""
    plan = [asdict(image) for image in images]
    if not (out / plan_file).exists() or read_json(out / plan_file) != plan:
        (out / AUDIT).unlink(missing_ok=True)
        for stale in (out / folder).glob("*"):
            stale.unlink()
        write_json(out / plan_file, plan)
    pairs = zip(images, frames, strict=True)
    wanted = [(image, frame) for image, frame in pairs if not (out / image.file).exists()]
    files = [list(members) for _, members in groupby(wanted, key=lambda pair: pair[0].source)]
    for members in tqdm(files, "writing", disable=None):
        first = members[0][0]
        planes = read_planes([frame for _, frame in members], first.low, first.high)
        for (image, _), (_, plane) in zip(members, planes, strict=True):
            write_plane(out / image.file, plane)
