"""Correlation of the noise of an image set at every small lag, from images alone.

The service's report (`models.imaging.correlation`) gives four lags of one image; stages 0 and 2 need the whole
neighbourhood, pooled over a set. The method is that module's, made exact where it approximates:

- Patches of 24 x 24 pixels lose their quadratic surface; an image's flattest twentieth is kept. Where a denoised
  image tells flat from not, the patches are chosen on it instead: the flattest noisy patches are partly those whose
  slow noise happens to be small.
- Removing the surface removes slow noise. What is left at each lag is a linear function of the true
  correlations, `surface_loss`, which is inverted.
- Patches are pooled by the median of their correlations, which a few with fine structure do not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2

from training.data.noise import Plane

Array = NDArray[np.float64]

LOWEST_SNR = 3.0  # of magnitude images: from here on their Rician noise is nearly Gaussian
PATCH = 24  # rows and columns
STEP = 12  # between patches
REACH = 5  # lags of the result: -5 to 5 both ways
SOLVED = 7  # lags that the inversion takes as other than 0
PATCHES_MIN = 8  # fewer say nothing
PATCHES_MAX = 48  # of one plane
GRID_MAX = 32  # patches along one axis of a large plane
FLAT_SHARE = 0.05  # of a plane's patches
CLIPPED_SHARE = 0.05  # of a patch's pixels that may have the plane's smallest or largest value
TIED_SHARE = 0.5  # of neighbours that may be equal: more is background or coarse rounding
ROUNDING = 1e-6  # of the plane's largest magnitude: what float32 arithmetic alone leaves
STRIDE_MAX = 5
STRIDE_TOLERANCE = 0.05
WHITE_ENOUGH = 0.1  # correlation that a blind spot of one pixel stands


@dataclass(frozen=True, eq=False)
class FlatPatches:
    """Patches of one plane that hold noise and little else."""

    noise: Plane  # (patches, 24, 24), surfaces removed
    signal: Plane  # (patches,), their means

    def __len__(self) -> int:
        return len(self.noise)


def measure_correlation(planes: Iterable[Plane], lowest_snr: float = 0.0) -> Array | None:
    """Noise correlation (11, 11) of the planes (H, W) together; [5 + down, 5 + across], 1 in the middle.

    With `lowest_snr` only patches count whose mean is that many of their own deviations above 0: the noise of
    MR magnitude images is not Gaussian in the dark. None where fewer than 8 patches hold noise.
    """
    return correlation_of_patches([flat_patches(plane, lowest_snr) for plane in planes])


def correlation_of_patches(patches: Sequence[FlatPatches]) -> Array | None:
    """Noise correlation (11, 11) of the patches of several planes; None where there are fewer than 8."""
    return correlation_of_noise([chunk.noise for chunk in patches])


def correlation_of_noise(noise: Sequence[Plane]) -> Array | None:
    """The same of patches (N, 24, 24) without their surfaces, plane by plane."""
    lags = [autocovariance(chunk) for chunk in noise if len(chunk)]
    return pool(np.concatenate(lags)) if sum(map(len, lags)) >= PATCHES_MIN else None


def flat_patches(plane: Plane, lowest_snr: float = 0.0, smooth: Plane | None = None) -> FlatPatches:
    """The flat patches of a plane (H, W) that hold noise; maybe none.

    `smooth` is the plane denoised; it tells where the plane is flat. What it took away is not what is measured:
    a blind-spot network sees slow noise in the neighbours and leaves it in.
    """
    patches = grid(plane)[flat_places(plane, lowest_snr, smooth)]
    return FlatPatches(remove_surface(patches), patches.mean((1, 2)))


def flat_places(plane: Plane, lowest_snr: float = 0.0, smooth: Plane | None = None) -> NDArray[np.intp]:
    """Which patches of the grid `flat_patches` takes."""
    patches, kept = noisy_patches(plane)
    energy = np.square(remove_surface(patches)).mean((1, 2))
    noisy = energy > (ROUNDING * np.abs(plane).max(initial=0.0)) ** 2
    if lowest_snr:
        noisy &= patches.mean((1, 2)) > lowest_snr * np.sqrt(energy)
    if smooth is not None:
        energy = np.square(remove_surface(grid(smooth)[kept])).mean((1, 2))
    energy, places = energy[noisy], np.flatnonzero(kept)[noisy]
    count = min(max(round(FLAT_SHARE * len(energy)), PATCHES_MIN), PATCHES_MAX, len(energy))
    return np.sort(places[np.argsort(energy, kind="stable")[:count]])


def grid(plane: Plane) -> Plane:
    """Patches (patches, 24, 24), 12 pixels apart or more where the plane is large; none of a smaller plane."""
    if min(plane.shape) < PATCH:
        return np.empty((0, PATCH, PATCH), np.float32)
    rows, columns = (max(STEP, -(-(side - PATCH) // GRID_MAX)) for side in plane.shape)
    return sliding_window_view(plane, (PATCH, PATCH))[::rows, ::columns].reshape(-1, PATCH, PATCH)


def noisy_patches(plane: Plane) -> tuple[Plane, NDArray[np.bool_]]:
    """Patches of the grid that are not cut off, constant or coarsely rounded, and which of the grid they are."""
    patches = grid(plane)
    clipped = ((patches == plane.min()) | (patches == plane.max())).mean((1, 2))
    tied = (patches[:, :, 1:] == patches[:, :, :-1]).mean((1, 2))
    kept = (clipped <= CLIPPED_SHARE) & (tied <= TIED_SHARE)
    return patches[kept], kept


def pool(covariance: Array) -> Array:
    """One correlation (11, 11) from the autocovariances (patches, 15, 15) of patches without their surface."""
    middle = (slice(None), slice(SOLVED, SOLVED + 1), slice(SOLVED, SOLVED + 1))
    raw = np.median(covariance / covariance[middle], axis=0)
    solved = restore_surface(raw)
    cut = SOLVED - REACH
    return np.clip(solved[cut:-cut, cut:-cut], -1.0, 1.0)


def stride_of(correlation: Array) -> tuple[int, bool]:
    """The smallest stride, 1 to 5, of pixel-shuffle downsampling that leaves noise (11, 11) white enough.

    White enough is below 0.1 at every multiple of the stride. Where no stride gets there (second result False),
    it is the smallest that comes within 0.05 of the best: a larger one would cost detail and win nothing.
    """
    left = [largest_left(correlation, stride) for stride in range(1, STRIDE_MAX + 1)]
    limit = max(WHITE_ENOUGH, min(left) + STRIDE_TOLERANCE if min(left) >= WHITE_ENOUGH else 0.0)
    return next(stride for stride, value in enumerate(left, 1) if value < limit), min(left) < WHITE_ENOUGH


def largest_left(correlation: Array, stride: int) -> float:
    """Largest magnitude of a correlation (11, 11) at multiples of the stride, the middle apart."""
    reach = correlation.shape[0] // 2
    lags = np.arange(-(reach // stride), reach // stride + 1) * stride + reach
    left = np.abs(correlation[np.ix_(lags, lags)])
    left[len(lags) // 2, len(lags) // 2] = 0.0
    return float(left.max())


def kept_share(correlation: Array) -> float:
    """Share of the variance of noise with a correlation (11, 11) that is left when a patch loses its surface."""
    wide = np.pad(correlation, SOLVED - REACH)
    return float((surface_loss() @ _half(wide))[-1])


def degrees_of_freedom(correlation: Array) -> float:
    """Independent values that a patch of noise with a correlation (K, K) amounts to."""
    return max(PATCH**2 / float(np.square(correlation).sum()), 2.0)


def autocovariance(patches: Array) -> Array:
    """Mean products of pixels at lags up to 7 (patches, 15, 15), of patches (patches, 24, 24) of mean 0."""
    return _sums(patches, patches) / _pairs()


def remove_surface(patches: Plane) -> Plane:
    """Patches (patches, 24, 24), float32, less their least-squares quadratic surface."""
    basis = _surfaces()
    flat = patches.reshape(-1, PATCH**2).astype(np.float32)
    basis = basis.astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)  # what is constant is large beside the noise
    return np.asarray((flat - (flat @ basis) @ basis.T).reshape(patches.shape))


def restore_surface(raw: Array) -> Array:
    """Correlations (15, 15) with what went with the surface put back; 1 in the middle."""
    solved = np.linalg.solve(surface_loss(), _half(raw))
    whole = np.concatenate([solved, solved[-2::-1]]).reshape(raw.shape)
    return np.asarray(whole / solved[-1])


@lru_cache(maxsize=1)
def surface_loss() -> Array:
    """Matrix (113, 113) from true correlations to those left without the surface.

    Lags are one half of the 15 x 15, the middle last; the other half is its mirror image. With B the surfaces
    and S_k the shift by lag k, lag h keeps the sum of (1 - BB') S_k (1 - BB') along its diagonal.
    """
    images = _surfaces().T.reshape(-1, PATCH, PATCH)
    side = 2 * SOLVED + 1
    crossed = np.stack([_sums(images, other[None]) for other in images], axis=1)  # [m, n]: b_m[i] b_n[i + h]
    columns = []
    for number in range(side**2):
        lag = (number // side - SOLVED, number % side - SOLVED)
        before, after = _shift(images, lag), _shift(images, (-lag[0], -lag[1]))
        lost = _sums(images, after).sum(0) + _sums(before, images).sum(0)
        weight = crossed[:, :, lag[0] + SOLVED, lag[1] + SOLVED]
        kept = np.einsum("mn,mnyx->yx", weight, crossed) - lost
        kept[lag[0] + SOLVED, lag[1] + SOLVED] += _pairs()[lag[0] + SOLVED, lag[1] + SOLVED]
        columns.append(_half(kept / _pairs()))
    loss = np.stack(columns, axis=1)
    mirrored = loss[:, : side**2 // 2] + loss[:, : side**2 // 2 : -1]
    return np.concatenate([mirrored, loss[:, side**2 // 2, None]], axis=1)


def _half(lags: Array) -> Array:
    return lags.reshape(-1)[: lags.size // 2 + 1]


def _shift(images: Array, lag: Sequence[int]) -> Array:
    """images[i + lag] at i, 0 from outside."""
    wide = np.pad(images, ((0, 0), (SOLVED, SOLVED), (SOLVED, SOLVED)))
    rows, columns = (slice(SOLVED + d, SOLVED + d + PATCH) for d in lag)
    return np.asarray(wide[:, rows, columns])


def _sums(first: Array, second: Array) -> Array:
    """Sums over i of first[i] second[i + h], (patches, 15, 15) for lags h up to 7."""
    size = (PATCH + SOLVED + 1,) * 2
    spectrum = np.conj(rfft2(first, s=size)) * rfft2(second, s=size)
    lags = np.arange(-SOLVED, SOLVED + 1)
    return np.asarray(irfft2(spectrum, s=size)[:, lags[:, None], lags[None, :]])


@lru_cache(maxsize=1)
def _pairs() -> Array:
    """Pairs of pixels of a patch at each lag (15, 15)."""
    count = PATCH - np.abs(np.arange(-SOLVED, SOLVED + 1))
    return np.outer(count, count).astype(np.float64)


@lru_cache(maxsize=1)
def _surfaces() -> Array:
    """Orthonormal basis (576, 6) of the quadratic surfaces on a patch."""
    y, x = np.mgrid[-1 : 1 : PATCH * 1j, -1 : 1 : PATCH * 1j].reshape(2, -1)
    return np.asarray(np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))[0])
