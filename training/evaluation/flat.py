"""The same flat patches of an image before and after: where nothing but noise can have been removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.noise import Plane
from training.noise.correlation import (
    PATCH,
    PATCHES_MIN,
    Array,
    correlation_of_noise,
    flat_places,
    grid,
    remove_surface,
)

SURFACES = 6  # degrees of freedom that go with a quadratic surface
UNTOUCHED = 1e-3  # of the middle patch's energy: a patch with less holds nothing to correlate


@dataclass(frozen=True, eq=False)
class FlatPair:
    """Flat patches (N, 24, 24) of one or several images, their surfaces removed."""

    before: Array
    after: Array

    @property
    def removed(self) -> Array:
        return self.before - self.after


def flat_pair(before: Plane, after: Plane, lowest_snr: float = 0.0, smooth: Plane | None = None) -> FlatPair:
    """The flattest twentieth of the patches of `before` that hold noise, and the same places of `after`; maybe none.

    They are chosen by `before` (or by `smooth`, as in `flat_patches`) alone, so that all restorers are measured on
    the same patches.
    """
    places = flat_places(before, lowest_snr, smooth)
    return FlatPair(remove_surface(grid(before)[places]), remove_surface(grid(after)[places]))


def joined(pairs: list[FlatPair]) -> FlatPair:
    """The patches of several images as one."""
    return FlatPair(np.concatenate([p.before for p in pairs]), np.concatenate([p.after for p in pairs]))


def level(patches: Array) -> float | None:
    """Standard deviation in the middle one of the patches, with the surfaces' freedom put back; None for too few.

    The flattest patches are partly those whose noise happens to be weak: a tenth low where all are flat.
    """
    if len(patches) < PATCHES_MIN:
        return None
    energy = np.median(np.square(patches, dtype=np.float64).mean((1, 2)))
    return float(np.sqrt(energy * PATCH**2 / (PATCH**2 - SURFACES)))


def correlation(patches: Array) -> Array | None:
    """Correlation (11, 11) at lags -5 to 5, [5 + down, 5 + across]; None for too few patches that hold anything."""
    energy = np.square(patches).mean((1, 2))
    held = patches[energy > UNTOUCHED * np.median(energy)] if len(patches) else patches
    return correlation_of_noise([held])
