"""The same flat patches of an image before and after: where nothing but noise can have been removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from training.data.noise import Plane
from training.noise.correlation import (
    CLIPPED_SHARE,
    PATCH,
    PATCHES_MIN,
    ROUNDING,
    STEP,
    TIED_SHARE,
    Array,
    autocovariance,
    degrees_of_freedom,
    largest_energy,
    pool,
    remove_surface,
)

ROUNDS = 3  # of choosing patches and measuring
SURFACES = 6  # degrees of freedom that go with a quadratic surface


@dataclass(frozen=True, eq=False)
class FlatPair:
    """Flat patches (N, 24, 24) of one or several images, their surfaces removed."""

    before: Array
    after: Array

    @property
    def removed(self) -> Array:
        return self.before - self.after


def flat_pair(before: Plane, after: Plane) -> FlatPair:
    """The patches of `before` whose energy one noise level explains, and the same places of `after`; maybe none."""
    patches = cut(before)
    residual = remove_surface(patches.astype(np.float64))
    energy = np.square(residual).mean((1, 2))
    usable = holds_noise(patches, before) & (energy > (ROUNDING * np.abs(before).max(initial=0.0)) ** 2)
    kept = np.flatnonzero(usable)
    kept = kept[explained(residual[kept], energy[kept])]
    return FlatPair(residual[kept], remove_surface(cut(after)[kept].astype(np.float64)))


def joined(pairs: list[FlatPair]) -> FlatPair:
    """The patches of several images as one."""
    return FlatPair(np.concatenate([p.before for p in pairs]), np.concatenate([p.after for p in pairs]))


def cut(plane: Plane) -> Plane:
    """Patches (N, 24, 24) on a grid; none of a plane that is smaller."""
    if min(plane.shape) < PATCH:
        return np.empty((0, PATCH, PATCH), np.float32)
    return sliding_window_view(plane, (PATCH, PATCH))[::STEP, ::STEP].reshape(-1, PATCH, PATCH)


def holds_noise(patches: Plane, plane: Plane) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which patches are neither cut off, constant nor coarsely rounded."""
    clipped = ((patches == plane.min()) | (patches == plane.max())).mean((1, 2))
    tied = (patches[:, :, 1:] == patches[:, :, :-1]).mean((1, 2))
    return np.asarray((clipped <= CLIPPED_SHARE) & (tied <= TIED_SHARE))


def explained(residual: Array, energy: Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which patches stay below the spread that noise of the correlation found has by itself."""
    kept = np.ones(len(energy), dtype=bool)
    if len(energy) < 2:
        return kept
    freedom = float(PATCH**2)
    for _ in range(ROUNDS):
        kept = energy <= largest_energy(energy, freedom)
        freedom = degrees_of_freedom(pool(autocovariance(residual[kept])))
    return kept


def level(patches: Array) -> float | None:
    """Standard deviation in the middle one of the patches, with the surfaces' freedom put back; None for too few."""
    if len(patches) < PATCHES_MIN:
        return None
    energy = np.median(np.square(patches).mean((1, 2)))
    return float(np.sqrt(energy * PATCH**2 / (PATCH**2 - SURFACES)))


def correlation(patches: Array) -> Array | None:
    """Correlation (11, 11) at lags -5 to 5, [5 + down, 5 + across]; None for too few patches that hold anything."""
    energy = np.square(patches).mean((1, 2))
    held = patches[energy > 1e-3 * np.median(energy)] if len(patches) else patches
    return pool(autocovariance(held)) if len(held) >= PATCHES_MIN else None
