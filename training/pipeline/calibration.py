"""The noise of one image from the residual at its flat pixels.

What a likelihood calls noise holds the model's error too (by 2 % at Vm / Vn = 0.04, 12 % at 0.25). It is
least where the image is flat; and a blind-spot mean has not seen the noise of its own pixel, so the
residual there is noise and nothing has been taken away from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter
from scipy.optimize import nnls

from training.data.noise import Plane
from training.pipeline.noise_table import LOWEST

Mask = NDArray[np.bool_]

FLAT_SHARE = 0.25  # of the pixels of about one signal, the flattest are used
BINS = 16  # of the signal, with as many pixels each
FEWEST = 200  # flat pixels of a bin, or it is left out
WINDOW = 7  # pixels, of the flatness
OUTLIER = 4.0  # robust deviations
CLIPPED_SHARE = 1e-3  # of pixels at the very end of the range: more, and the image was clipped there


@dataclass(frozen=True)
class Calibration:
    """Variance a s + b at signal s, and how well that describes the flat pixels."""

    a: float
    b: float
    fit_residual: float  # root mean square over the bins of log(observed / fitted deviation)
    share_flat: float  # share of all pixels that were used


@dataclass(frozen=True)
class Bin:
    """Flat pixels of about one signal."""

    signal: float
    variance: float
    pixels: int


def usable(noisy: Plane, level: float) -> Mask:
    """Where the residual is the noise as it is: neither saturated nor padded."""
    useful: Mask = maximum_filter(noisy, 3) > minimum_filter(noisy, 3)
    low, high = float(noisy.min()), float(noisy.max())
    smooth = uniform_filter(noisy, 5)
    if np.mean(noisy == low) > CLIPPED_SHARE:
        useful &= smooth > low + 2 * level
    if np.mean(noisy == high) > CLIPPED_SHARE:
        useful &= smooth < high - 2 * level
    return useful


def roughness(mean: Plane) -> Plane:
    """Local standard deviation of the mean about a plane's worth of slope: small where the image is flat."""
    centred = mean - uniform_filter(mean, 4 * WINDOW + 1)
    square = uniform_filter(centred**2, WINDOW) - uniform_filter(centred, WINDOW) ** 2
    return np.maximum(square, 0)


def robust_variance(residual: Plane) -> float:
    """Mean square of a residual without its outliers (texture the mean missed, defects)."""
    limit = OUTLIER * 1.4826 * float(np.median(np.abs(residual)))
    kept = residual[np.abs(residual) <= limit]
    return float(np.mean(kept.astype(np.float64) ** 2)) if kept.size else 0.0


def flat_bins(noisy: Plane, mean: Plane, level: float) -> list[Bin]:
    """The flattest pixels of every range of signals."""
    useful = usable(noisy, level)
    signal, residual, rough = mean[useful], (noisy - mean)[useful], roughness(mean)[useful]
    if signal.size < FEWEST:
        return []
    order = np.argsort(signal, kind="stable")
    bins = []
    for chosen in np.array_split(order, max(1, min(BINS, int(signal.size * FLAT_SHARE) // FEWEST))):
        flattest = chosen[np.argsort(rough[chosen], kind="stable")[: max(1, int(FLAT_SHARE * chosen.size))]]
        variance = robust_variance(residual[flattest])
        if variance > 0:
            bins.append(Bin(float(signal[flattest].mean()), variance, flattest.size))
    return bins


def fit_line(bins: list[Bin]) -> tuple[float, float]:
    """(a, b), both at least `LOWEST`, of the weighted least squares line through the bins.

    The variance of a variance estimate is 2 v^2 / n, so weights are sqrt(n) / fitted v, found in a few rounds.
    """
    signal, observed = np.array([x.signal for x in bins]), np.array([x.variance for x in bins])
    count = np.sqrt([x.pixels for x in bins])
    fitted = observed
    a = b = 0.0
    for _ in range(5):
        weight = count / np.maximum(fitted, 0.1 * float(np.median(observed)))
        matrix = np.stack([signal, np.ones_like(signal)], axis=1) * weight[:, None]
        (a, b), _ = nnls(matrix, observed * weight)
        fitted = a * signal + b
    return max(float(a), LOWEST), max(float(b), LOWEST)


def calibrate(noisy: Plane, mean: Plane, level: float) -> Calibration | None:
    """The noise of an image (H, W) whose blind-spot mean is given; `level` is about its deviation.

    None where it has too few flat pixels that are neither saturated nor padded.
    """
    bins = flat_bins(noisy, mean, level)
    if not bins or sum(x.pixels for x in bins) < FEWEST:
        return None
    a, b = fit_line(bins)
    misfit = [0.5 * np.log(x.variance / max(a * x.signal + b, 1e-12)) for x in bins]
    residual = float(np.sqrt(np.mean(np.square(misfit))))
    return Calibration(a, b, residual, sum(x.pixels for x in bins) / noisy.size)
