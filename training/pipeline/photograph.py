"""The clean photographs of a run: luminance planes in [0, 1], without those that are noisy themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from models.errors import ImageError
from training.comparator.noise_level import wavelet
from training.data.noise import Plane
from training.data.source import area_reduce, read_plane
from training.noise.correlation import noisy_patches, remove_surface
from training.pipeline.intake import list_files, matches, reason_of
from training.pipeline.partition import partition
from training.pipeline.record import CleanImage, Refusal, write_plane

CLEAN = Path("audit", "clean")
FLAT_SHARE = 0.05  # of the patches


class CleanConfig(Protocol):
    """The part of stage 0's configuration that photographs need."""

    @property
    def clean_include(self) -> tuple[str, ...]: ...
    @property
    def clean_exclude(self) -> tuple[str, ...]: ...
    @property
    def clean_test(self) -> tuple[str, ...]: ...
    @property
    def clean_reduce(self) -> int: ...
    @property
    def clean_level(self) -> float: ...
    @property
    def smallest(self) -> int: ...
    @property
    def test_share(self) -> float: ...


def prepare_clean(
    out: Path, folder: Path, config: CleanConfig, noisy: set[str], seed: int
) -> tuple[list[CleanImage], list[Refusal]]:
    """Writes the planes of the photographs; `noisy` are SHA-256 of files that are no clean ones.

    Raises ValueError where no photograph is left.
    """
    kept, refused, seen = list[tuple[str, str]](), list[Refusal](), dict.fromkeys(noisy, "one of the noisy images")
    for path in tqdm(list_files(folder, config.clean_include, config.clean_exclude), "photographs", disable=None):
        source = path.relative_to(folder).as_posix()
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if sha256 in seen:
                raise ValueError(f"the same file as {seen[sha256]}")
            write_plane(out / file_of(len(kept) + 1), photograph(path, config))
            seen[sha256] = source
            kept.append((source, sha256))
        except (ImageError, ValueError, OSError) as error:
            refused.append(Refusal(source, reason_of(error)))
    if not kept:
        reasons = "; ".join(f"{refusal.source}: {refusal.reason}" for refusal in refused[:5])
        raise ValueError(f"{folder.name}: none of its photographs can be used (left out: {reasons})")
    sides = sides_of([source for source, _ in kept], config, seed)
    return [
        CleanImage(f"c{number:06}", file_of(number), sha256, source, side)
        for number, ((source, sha256), side) in enumerate(zip(kept, sides, strict=True), 1)
    ], refused


def sides_of(sources: list[str], config: CleanConfig, seed: int) -> list[str]:
    """ "train" or "test" for every photograph: by its name where the configuration says so, else by lot."""
    if config.clean_test:
        if not any(matches(source, config.clean_test) for source in sources):
            raise ValueError("audit.clean_test names no photograph of the clean folder")
        return ["test" if matches(source, config.clean_test) else "train" for source in sources]
    return partition(["clean"] * len(sources), sources, config.test_share, seed)[0]


def file_of(number: int) -> str:
    return (CLEAN / f"c{number:06}.npy").as_posix()


def photograph(path: Path, config: CleanConfig) -> Plane:
    """A file's luminance on the unit scale. Raises ValueError where it is too small, constant or noisy."""
    stored, full_scale = read_plane(path)
    plane = stored.astype(np.float32)
    if stored.dtype.kind == "f" and (plane.min() < 0 or plane.max() > full_scale):
        plane, full_scale = plane - plane.min(), float(np.ptp(plane))
    plane = plane / np.float32(full_scale)
    if min(plane.shape) >= config.smallest * config.clean_reduce:
        plane = area_reduce(plane, config.clean_reduce)
    rows, columns = plane.shape
    if min(plane.shape) < config.smallest:
        raise ValueError(f"{rows} x {columns} pixels: at least {config.smallest} x {config.smallest} are needed")
    if np.ptp(plane) == 0:
        raise ValueError("constant: every pixel has the same value")
    if (level := own_noise(plane)) > config.clean_level:
        raise ValueError(f"its own noise is about {level:.3f} of the range, more than {config.clean_level}")
    return plane


def own_noise(plane: Plane) -> float:
    """Level of a photograph's own noise, unit scale: the lower of a wavelet estimate and of its flattest regions.

    Texture raises either, noise both.
    """
    energy = np.square(remove_surface(noisy_patches(plane)[0])).mean((1, 2))
    flat = float(np.sqrt(np.quantile(energy, FLAT_SHARE))) if len(energy) else np.inf
    return min(wavelet(plane), flat)
