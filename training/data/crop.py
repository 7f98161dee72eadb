"""Crops for training: where, in which orientation, with which intensities.

Everything is drawn from the generator that is handed in, so a sample is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from training.data.noise import Plane
from training.data.source import SourceConfig


@dataclass(frozen=True)
class Place:
    """Where a crop lies, and in which of the eight orientations it is taken."""

    top: int
    left: int
    turns: int  # quarters; an odd number makes rows of columns
    mirrored: bool


def draw_place(shape: tuple[int, ...], side: int, rng: np.random.Generator) -> Place:
    """A place for a crop of side x side in a plane (H, W)."""
    top, left = (int(rng.integers(0, max(length - side, 0) + 1)) for length in shape)
    return Place(top, left, int(rng.integers(4)), bool(rng.random() < 0.5))


def cut(plane: Plane, side: int, place: Place) -> Plane:
    """The crop (side, side) of a plane (H, W) at a place; small planes are reflected."""
    short = [max(0, side - length) for length in plane.shape]
    if any(short):
        plane = np.pad(plane, [(0, short[0]), (0, short[1])], mode="symmetric")
    crop = np.rot90(plane[place.top : place.top + side, place.left : place.left + side], place.turns)
    return np.array(crop[:, ::-1] if place.mirrored else crop, order="C")  # a copy: the plane may be a file


def random_crop(plane: Plane, side: int, rng: np.random.Generator) -> Plane:
    """A side x side part of plane (H, W), in one of its eight orientations; small planes are reflected."""
    return cut(plane, side, draw_place(plane.shape, side, rng))


def middle(plane: Plane, side: int, multiple: int = 4) -> Plane:
    """The middle of a plane, at most side x side, both sides multiples of `multiple`."""
    rows, columns = (min(side, length) // multiple * multiple for length in plane.shape)
    top, left = (plane.shape[0] - rows) // 2, (plane.shape[1] - columns) // 2
    return np.ascontiguousarray(plane[top : top + rows, left : left + columns])


def vary_intensity(crop: Plane, rng: np.random.Generator, dark_share: float, invert_share: float) -> Plane:
    """Makes photographs look more like medical images; stays within [0, 1].

    A share is inverted (X-ray film), a share loses its dark end to black (air around the body).
    """
    if rng.random() < invert_share:
        crop = 1.0 - crop
    if rng.random() < dark_share:
        threshold = np.quantile(crop, rng.uniform(0.05, 0.7))
        crop = np.clip((crop - threshold) / max(1.0 - threshold, 0.2), 0.0, 1.0)
    return crop.astype(np.float32, copy=False)


class Planes(Protocol):
    """Images that crops are cut from: `training.data.source.Source`, or files that are opened for every crop."""

    @property
    def config(self) -> SourceConfig: ...
    def plane(self, index: int, rng: np.random.Generator) -> Plane: ...
    def __len__(self) -> int: ...


class CropMixture:
    """Draws crops from several sources according to their weights."""

    def __init__(self, sources: Sequence[Planes]) -> None:
        weights = np.array([source.config.weight for source in sources], dtype=np.float64)
        self.sources = sources
        self.cumulative = np.cumsum(weights / weights.sum())

    def draw(self, side: int, rng: np.random.Generator) -> Plane:
        """One clean crop (side, side) on the unit scale."""
        source = self.sources[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.sources) - 1)]
        return random_crop(source.plane(int(rng.integers(len(source))), rng), side, rng)
