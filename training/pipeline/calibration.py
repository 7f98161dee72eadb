"""The noise of one image from the residual where it is flat.

What a likelihood calls noise holds the model's error too (by 2 % at Vm / Vn = 0.04, 12 % at 0.25). That
error is least where the image is flat; and a blind-spot mean has not seen the noise of its own pixel, so
the residual there is noise, and nothing has been taken away from it. Few images are flat anywhere, so
the residual's variance is followed over signal and roughness, and read off at roughness 0.
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

FLAT_SHARE = 0.5  # of the pixels of about one signal, the flattest are used
SIGNALS, ROUGHNESSES = 8, 12  # bins
FEWEST = 30  # pixels of a bin, or there are fewer bins
LEAST = 400  # flat pixels of an image, or nothing can be said
OUTLIER = 4.0  # robust deviations
CLIPPED_SHARE = 1e-3  # of pixels at the very end of the range: more, and the image was clipped there
ROUNDS = 8  # of reweighting


@dataclass(frozen=True)
class Calibration:
    """Variance a max(s, 0) + b at signal s, and how well that describes the flat pixels."""

    a: float
    b: float
    fit_residual: float  # root mean square over the bins of log(observed / fitted deviation)
    share_flat: float  # share of all pixels that were used


@dataclass(frozen=True)
class Bin:
    """Pixels of about one signal and roughness."""

    signal: float
    roughness: float
    variance: float  # of the residual
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
    """Root mean square gradient of the mean (H, W) around each pixel, both sides at least 2."""
    down, across = np.gradient(uniform_filter(mean, 3))
    return np.sqrt(np.maximum(uniform_filter(down**2 + across**2, 5), 0))


def robust_variance(residual: Plane) -> float:
    """Mean square of a residual without its outliers (texture the mean missed, defects)."""
    limit = OUTLIER * 1.4826 * float(np.median(np.abs(residual)))
    kept = residual[np.abs(residual) <= limit]
    return float(np.mean(kept.astype(np.float64) ** 2)) if kept.size else 0.0


def flat_bins(noisy: Plane, mean: Plane, level: float) -> list[Bin]:
    """The flatter pixels of every range of signals, by roughness."""
    useful = usable(noisy, level)
    signal, residual, rough = mean[useful], (noisy - mean)[useful], roughness(mean)[useful]
    flat = int(signal.size * FLAT_SHARE)
    if flat < LEAST:
        return []
    signals = max(1, min(SIGNALS, flat // (3 * FEWEST)))
    bins = []
    for alike in np.array_split(np.argsort(signal, kind="stable"), signals):
        flatter = alike[np.argsort(rough[alike], kind="stable")[: int(FLAT_SHARE * alike.size)]]
        for chosen in np.array_split(flatter, max(1, min(ROUGHNESSES, flatter.size // FEWEST))):
            variance = robust_variance(residual[chosen])
            if variance > 0:
                bins.append(Bin(float(signal[chosen].mean()), float(rough[chosen].mean()), variance, chosen.size))
    return bins


def fit_law(bins: list[Bin]) -> tuple[float, float, NDArray[np.float64]]:
    """(a, b) and the fitted variance of each bin: a max(signal, 0) + b + c roughness, none of them negative.

    The variance of a variance estimate is 2 v^2 / n, so weights are sqrt(n) / fitted v, found in a few rounds.
    """
    flattest = min(x.roughness for x in bins)  # what noise in the mean makes of a flat place
    columns = np.array([[max(x.signal, 0.0), 1.0, x.roughness - flattest] for x in bins])
    scale = np.maximum(np.abs(columns).mean(axis=0), 1e-12)
    observed, count = np.array([x.variance for x in bins]), np.sqrt([x.pixels for x in bins])
    fitted, found = observed, np.zeros(3)
    for _ in range(ROUNDS):
        weight = count / np.maximum(fitted, 0.1 * float(np.median(observed)))
        found, _ = nnls(columns / scale * weight[:, None], observed * weight)
        fitted = columns / scale @ found
    a, b, _ = found / scale
    return max(float(a), LOWEST), max(float(b), LOWEST), fitted


def calibrate(noisy: Plane, mean: Plane, level: float) -> Calibration | None:
    """The noise of an image (H, W) whose blind-spot mean is given; `level` is about its deviation.

    None where it has too few pixels that are neither saturated nor padded.
    """
    bins = flat_bins(noisy, mean, level) if min(noisy.shape) > 1 else []
    if not bins:
        return None
    a, b, fitted = fit_law(bins)
    misfit = 0.5 * np.log(np.array([x.variance for x in bins]) / np.maximum(fitted, LOWEST))
    return Calibration(a, b, float(np.sqrt(np.mean(misfit**2))), sum(x.pixels for x in bins) / noisy.size)
