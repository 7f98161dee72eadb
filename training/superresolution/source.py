"""High-resolution planes of a run as sources of crops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.crop import CropMixture
from training.data.noise import Plane
from training.data.source import SourceConfig, area_reduce
from training.superresolution.record import PictureAudit, of_split


@dataclass(frozen=True)
class CropConfig:
    """Which images crops are cut from, and how large those are taken.

    An image made half as large has half the noise and sharper edges: what medical images of high resolution, which
    are seldom free of noise, need to be the truth that a network learns to draw.
    """

    medical_share: float = 0.4  # of the crops, where there are photographs too
    photograph_reduce_share: float = 0.15  # of the photographs' crops, from images made half as large
    medical_reduce_share: float = 0.6  # of the others'
    set_power: float = 0.5  # a set of n images weighs n to this power: 0 all sets alike, 1 all images

    def __post_init__(self) -> None:
        shares = (self.medical_share, self.photograph_reduce_share, self.medical_reduce_share, self.set_power)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("restore.crops: every share, and set_power, must lie between 0 and 1")


@dataclass(frozen=True)
class PlaneFiles:
    """Planes of one set as .npy files, opened for every crop: a hospital's images need not fit into memory."""

    config: SourceConfig
    paths: tuple[Path, ...]

    def plane(self, index: int, rng: np.random.Generator) -> Plane:
        """Plane `index`, float32 (H, W), now and then made half as large."""
        plane: Plane = np.load(self.paths[index], mmap_mode="r", allow_pickle=False)
        reduced = self.config.reduce > 1 and rng.random() < self.config.reduce_share
        return area_reduce(plane, self.config.reduce) if reduced else plane

    def __len__(self) -> int:
        return len(self.paths)


def crops_of(out: Path, audit: PictureAudit, config: CropConfig) -> CropMixture:
    """Crops of the training images of a run. Raises ValueError where there are none."""
    found: dict[str, list[Path]] = {}
    for image in of_split(audit.high, "train"):
        found.setdefault(image.set, []).append(out / image.file)
    sets = {name: audit.high_sets[name] for name in found}
    sizes = {name: len(paths) ** config.set_power for name, paths in found.items()}
    totals = {
        kind: sum(size for name, size in sizes.items() if sets[name].photographs == kind) for kind in (True, False)
    }
    shares = {True: 1 - config.medical_share, False: config.medical_share} if all(totals.values()) else {}
    sources = [
        PlaneFiles(
            SourceConfig(
                name=name,
                folder="audit/high",
                weight=shares.get(record.photographs, 1.0) * sizes[name] / totals[record.photographs],
                reduce=2,
                reduce_share=config.photograph_reduce_share if record.photographs else config.medical_reduce_share,
            ),
            tuple(found[name]),
        )
        for name, record in sets.items()
    ]
    if not any(source.config.weight for source in sources):
        raise ValueError("no high-resolution image to learn from; add some, or look at restore.crops.medical_share")
    return CropMixture(sources)
