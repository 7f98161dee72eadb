"""How strongly the noise of neighbouring pixels is related.

White noise has correlation 0 at every lag; reconstruction kernels, interpolation and demosaicing
raise it (CT about 0.4 to 0.7 at lag 1). A denoiser trained on other correlation does its work badly,
which is why the report on an image names it.

Method: patches of 24 x 24 pixels; a quadratic surface is removed from each by least squares; of the
patches with real noise in them the flattest tenth is kept; their autocorrelations are pooled by the
median, which a few patches with fine structure do not move. Removing the surface also removes the
noise's slowest part, which pulls every lag down; the part is computed from the result and put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray[Any, Any]

PATCH = 24  # rows and columns
STRIDE = 12
GRID_MAX = 24  # patches along one axis of a large frame
KEPT_SHARE = 0.1  # the flattest patches
KEPT_MIN = 8  # patches, fewer say nothing
CLIPPED_SHARE = 0.05  # of a patch's pixels that may have the plane's smallest or largest value
TIED_SHARE = 0.5  # of horizontal neighbours that may be equal: more is background or coarse rounding
ROUNDING = 1e-6  # of the plane's largest magnitude: what float32 arithmetic alone leaves behind
LAGS = ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0))


@dataclass(frozen=True)
class NoiseCorrelation:
    """Correlation of the noise at one and two pixels' distance, -1 to 1; x along a row, y along a column."""

    x1: float
    x2: float
    y1: float
    y2: float
    patches: int = 0  # flat patches that the figures rest on; 0 where an estimator read them off the whole image


def noise_correlation(plane: Array, padding: Array | None = None) -> NoiseCorrelation | None:
    """Correlation of the noise in one plane (rows, columns), floating point of any scale.

    Patches touching `padding` (rows, columns; true where nothing was measured) are left out.
    None where fewer than `KEPT_MIN` patches hold noise: small, constant or saturated planes.
    """
    return pooled_correlation([plane], None if padding is None else [padding])


def pooled_correlation(planes: Sequence[Array], paddings: Sequence[Array] | None = None) -> NoiseCorrelation | None:
    """The same over the flattest patches of several planes together (frames or colour planes)."""
    masks: Sequence[Array | None] = paddings if paddings is not None else [None] * len(planes)
    lags = [_flattest(plane, mask) for plane, mask in zip(planes, masks, strict=True)]
    kept = np.concatenate([np.empty((0, len(LAGS))), *lags])
    if len(kept) < KEPT_MIN:
        return None
    raw = np.median(kept[:, 1:] / kept[:, :1], axis=0)
    x1, x2, y1, y2 = (float(value) for value in _restore_slow_part(raw))
    return NoiseCorrelation(x1, x2, y1, y2, len(kept))


def _flattest(plane: Array, padding: Array | None) -> Array:
    """Autocovariances (patches, lags) of the flattest patches with noise in them."""
    patches = _patches(plane)
    if not len(patches):
        return np.empty((0, len(LAGS)))
    usable = _has_noise(patches, plane)
    if padding is not None:
        usable &= ~_patches(padding).any((1, 2))
    residual = _remove_surface(patches[usable].astype(np.float64))
    energy = np.square(residual).mean((1, 2))
    noisy = energy > (ROUNDING * np.abs(plane).max()) ** 2
    residual, energy = residual[noisy], energy[noisy]
    count = max(round(KEPT_SHARE * len(energy)), min(KEPT_MIN, len(energy)))
    flattest = residual[np.argsort(energy, kind="stable")[:count]]
    return np.stack([_covariance(flattest, *lag) for lag in LAGS], axis=-1)


def _patches(plane: Array) -> Array:
    """Patches (patches, PATCH, PATCH) on a grid, `STRIDE` apart or more where the plane is large."""
    if min(plane.shape) < PATCH:
        return np.empty((0, PATCH, PATCH), plane.dtype)
    rows, columns = (max(STRIDE, -(-(side - PATCH) // GRID_MAX)) for side in plane.shape)
    return sliding_window_view(plane, (PATCH, PATCH))[::rows, ::columns].reshape(-1, PATCH, PATCH)


def _has_noise(patches: Array, plane: Array) -> Array:
    clipped = ((patches == plane.min()) | (patches == plane.max())).mean((1, 2))
    tied = (patches[:, :, 1:] == patches[:, :, :-1]).mean((1, 2))
    return np.asarray((clipped <= CLIPPED_SHARE) & (tied <= TIED_SHARE))


def _remove_surface(patches: Array) -> Array:
    basis = _surfaces()
    flat = patches.reshape(-1, PATCH**2)
    return np.asarray((flat - (flat @ basis) @ basis.T).reshape(patches.shape))


def _surfaces() -> Array:
    """Orthonormal basis (pixels, 6) of the quadratic surfaces on a patch."""
    y, x = np.mgrid[-1 : 1 : PATCH * 1j, -1 : 1 : PATCH * 1j].reshape(2, -1)
    return np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))[0]


def _covariance(patches: Array, down: int, across: int) -> Array:
    here = patches[:, : PATCH - down, : PATCH - across]
    return np.asarray((here * patches[:, down:, across:]).mean((1, 2)))


def _restore_slow_part(raw: Array) -> Array:
    """Corrects correlations (x1, x2, y1, y2) for what went with the surface.

    Six surfaces carry 6 / PATCH^2 of the noise power at frequency 0, which is the sum of all
    correlations (taken as separable, lags above 2 as 0). All lags lose about the same amount.
    """
    lags = raw.copy()
    for _ in range(20):
        x1, x2, y1, y2 = np.clip(lags, 0.0, 1.0)
        lost = 6 / PATCH**2 * (1 + 2 * (x1 + x2)) * (1 + 2 * (y1 + y2))
        lags = raw * (1 - lost) + lost
    return np.clip(lags, -1.0, 1.0)
