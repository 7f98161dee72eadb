"""The images of every table, by set."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.config import build
from training.data.crop import middle
from training.data.noise import Plane
from training.data.source import Source, SourceConfig

SETS = Path(__file__).parents[1] / "configs" / "evaluation.toml"
SIDE = 320  # larger images are cropped to their middle: BM3D takes seconds for each


@dataclass(frozen=True, eq=False)
class HeldBack:
    """One image on the unit scale that is kept for scoring."""

    set: str
    name: str
    plane: Plane  # (H, W)


def read_group(data: Path, sets: Path, group: str, count: int, side: int = SIDE) -> Iterator[HeldBack]:
    """The first `count` images, evenly spread, of every set of a group (`[[group]]` in the file `sets`).

    Each is the middle of the image, at most side x side. Raises FileNotFoundError for a set without images.
    """
    for raw in tomllib.loads(sets.read_text(encoding="utf-8")).get(group, []):
        source = Source(build(SourceConfig, raw, sets.name), data)
        for i in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)):
            plane = source.plane(int(i), np.random.default_rng(0))
            yield HeldBack(source.config.name, source.paths[i].name, middle(plane, side))
