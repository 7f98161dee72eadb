"""Stage audit: reads both folders, holds whole patients back, and puts every image on the unit scale of its set.

Writes `audit/audit.json` and every plane as float32 .npy, `audit/high` and `audit/low`, so that no later stage needs an
original. Colour is taken as its luminance. A call that was stopped goes on with the planes that are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.pipeline.audit import by_set, facts, groups_of, left_out, require_enough, write_planes
from training.pipeline.image_set import Scale, scale_of, warnings_of
from training.pipeline.intake import Frame, Intake, SetRule, list_files, matches, rule_for, take_in
from training.pipeline.partition import TEST, TRAIN, partition
from training.pipeline.photograph import own_noise
from training.pipeline.record import AuditedImage, Refusal, read_plane
from training.superresolution.record import PictureAudit, PictureSet, read_pictures, write_pictures
from training.superresolution.twin import join_twins

HIGH, LOW = Path("audit", "high"), Path("audit", "low")
EIGHT_BIT = "uint8"
MEASURED = 8  # images of a set
NOISY = 0.02  # own noise of high-resolution images, unit scale, from which on a network learns to draw it
LOW_SMALLEST = 32  # rows and columns of a low-resolution image


@dataclass(frozen=True)
class AuditConfig:
    """How the folders become sets of planes; globs match paths below the folder, as in "ct/*"."""

    include: tuple[str, ...] = ("*",)  # of the high-resolution files
    exclude: tuple[str, ...] = ()
    low_include: tuple[str, ...] = ("*",)  # of the low-resolution files
    low_exclude: tuple[str, ...] = ()
    rules: tuple[SetRule, ...] = ()  # what folders alone do not say of their images
    smallest: int = 64  # rows and columns of a high-resolution image
    frames: int = 16  # of one file, evenly spaced
    test_share: float = 0.15
    test: tuple[str, ...] = ()  # high-resolution files held back, whatever the lot says

    def __post_init__(self) -> None:
        if not 0 <= self.test_share <= 0.5:
            raise ValueError(f"audit.test_share: {self.test_share} is not within 0 to 0.5")
        if self.smallest < 32 or self.frames < 1:
            raise ValueError("audit: smallest >= 32 and frames >= 1 are needed")


def run(out: Path, config: AuditConfig, *, hr: Path, lr: Path | None, seed: int) -> None:
    """Makes `audit/` of a run from a folder of high-resolution images and, if there is one, of low-resolution ones.

    Files that cannot be used are listed as refused, with the reason. Raises ValueError where a folder holds no file,
    or fewer than three of its images can be used.
    """
    high = read_folder(hr, config.include, config.exclude, config, config.smallest)
    low = read_folder(lr, config.low_include, config.low_exclude, config, LOW_SMALLEST) if lr else Intake([], [])
    if lr:
        leave_out(low, {frame.sha256 for frame in high.frames})
        require_enough(lr, low)
    require_enough(hr, high)
    high.frames[:] = [by_itself(frame) for frame in high.frames]
    frames = high.frames + low.frames
    groups = join_twins(frames, groups_of(frames))
    names = [f"high {f.set}" for f in high.frames] + [f"low {f.set}" for f in low.frames]
    sides, warnings = partition(names, groups, config.test_share, seed)
    if config.test:
        sides = named_sides(high.frames, groups, sides, config.test)
    count = len(high.frames)
    high_images, high_sets = write_side(out, HIGH, high.frames, groups[:count], sides[:count], config.rules)
    low_images, low_sets = write_side(out, LOW, low.frames, groups[count:], sides[count:], config.rules)
    refused = (*high.refused, *low.refused)
    write_pictures(out, PictureAudit(high_images, low_images, refused, high_sets, low_sets, tuple(warnings)))


def findings(out: Path) -> Iterator[str]:
    """What a person should know of an audit: what is used, what was left out and why, what to be wary of."""
    audit = read_pictures(out)
    held_back = sum(image.split == TEST for image in audit.high)
    yield f"high-resolution images: {len(audit.high)}, {held_back} of them held back; low-resolution: {len(audit.low)}"
    yield from left_out(audit.refused)
    yield from (f"note: {warning}" for warning in audit.warnings)
    for kind, sets in (("high", audit.high_sets), ("low", audit.low_sets)):
        yield from (f"note: {kind} {name}: {text}" for name, found in sets.items() for text in found.warnings)


def read_folder(
    folder: Path, include: tuple[str, ...], exclude: tuple[str, ...], config: AuditConfig, smallest: int
) -> Intake:
    """The images of a folder that can be used."""
    paths = list_files(folder, include, exclude)
    return take_in(folder, tqdm(paths, "reading", disable=None), config.rules, smallest, config.frames)


def by_itself(frame: Frame) -> Frame:
    """A colour photograph is of no patient: what else its name begins with (IMG_0001, IMG_0002) groups nothing."""
    photograph = frame.colour and frame.modality == "OT" and frame.patient[0] == "file"
    return replace(frame, patient=("photograph", frame.source)) if photograph else frame


def leave_out(low: Intake, known: set[str]) -> None:
    """Takes files out of the low-resolution images that are high-resolution ones, too: both were named alike."""
    same = {frame.source for frame in low.frames if frame.sha256 in known}
    low.refused += [Refusal(source, "the same file is a high-resolution image, too") for source in sorted(same)]
    low.frames[:] = [frame for frame in low.frames if frame.source not in same]


def named_sides(
    frames: Sequence[Frame], groups: Sequence[str], sides: Sequence[str], test: tuple[str, ...]
) -> list[str]:
    """The sides where the configuration names the high-resolution test images: those, and whoever is on them.

    Raises ValueError where it names none, or all.
    """
    held_back = {group for frame, group in zip(frames, groups, strict=False) if matches(frame.source, test)}
    named = [TEST if group in held_back else TRAIN for group in groups[: len(frames)]]
    if len(set(named)) < 2:
        raise ValueError("audit.test names no high-resolution image, or all of them")
    low = [TEST if group in held_back else side for group, side in zip(groups, sides, strict=True)][len(frames) :]
    return named + low


def write_side(
    out: Path,
    folder: Path,
    frames: Sequence[Frame],
    groups: Sequence[str],
    sides: Sequence[str],
    rules: tuple[SetRule, ...],
) -> tuple[tuple[AuditedImage, ...], dict[str, PictureSet]]:
    """Writes the planes of one folder; what is to be said of each, and of their sets."""
    members = by_set(frames)
    scales = {name: unit_scale(of_set, rule_for(name, rules)) for name, of_set in members.items()}
    images = tuple(
        AuditedImage(**facts(folder, number, frame, scales[frame.set], group, side))
        for number, (frame, group, side) in enumerate(zip(frames, groups, sides, strict=True), 1)
    )
    write_planes(out, folder, images, frames, folder.with_name(f"{folder.name}.json"))
    sets = {name: describe(out, images, name, of_set, scales[name], folder) for name, of_set in members.items()}
    return images, sets


def as_photographs(frames: Sequence[Frame]) -> bool:
    """Whether a set's real values are those of 8-bit pictures, 0 to 255."""
    within = all(frame.quantiles[0] >= 0 and frame.quantiles[-1] <= 255 for frame in frames)
    return within and all(frame.stored == EIGHT_BIT and not frame.hounsfield for frame in frames)


def unit_scale(frames: Sequence[Frame], rule: SetRule) -> Scale:
    """The unit scale of a set: 0 to 255 for 8-bit pictures, else as a denoiser's run finds it."""
    found = scale_of(frames, rule)
    return found if rule.window or not as_photographs(frames) else Scale(0.0, 255.0, found.rician)


def describe(
    out: Path, images: Sequence[AuditedImage], name: str, frames: Sequence[Frame], scale: Scale, folder: Path
) -> PictureSet:
    """The record of one set."""
    members = [image for image in images if image.set == name]
    chosen = np.unique(np.linspace(0, len(members) - 1, min(MEASURED, len(members))).astype(int))
    noise = float(np.median([own_noise(read_plane(out, members[i].file)) for i in chosen]))
    warnings = warnings_of(frames, noise=folder == LOW)
    if folder == HIGH and noise > NOISY:
        text = f"their own noise is about {noise:.3f} of the range"
        warnings.append(f"{text}; crops from images made half as large are without it")
    photographs = as_photographs(frames) and frames[0].modality == "OT"
    return PictureSet(
        frames[0].modality, len(frames), scale.low, scale.high, photographs, round(noise, 5), tuple(warnings)
    )
