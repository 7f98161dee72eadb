"""Classical estimators of the level of white noise, from one image."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.stats import gamma
from skimage.restoration import estimate_sigma

from training.data.noise import Plane

SIDE = 7  # of a patch
ROUNDS = 3
CONFIDENCE = 1 - 1e-6  # share of noise-only patches that count as weak in texture
CHUNK = 1 << 14  # patches unfolded at a time


def wavelet(plane: Plane) -> float:
    """Median absolute diagonal wavelet coefficient over 0.6745 (Donoho and Johnstone, 1994)."""
    return float(estimate_sigma(plane))


def weak_texture(plane: Plane) -> float:
    """Smallest principal component of the patches without texture (Liu, Tanaka and Okutomi, 2013).

    plane (H, W), both sides 7 at least -> standard deviation of white noise in the plane's units.
    Patches count as weak in texture while their summed squared gradients are what noise of the last
    estimate would give; three rounds, as published. 0 where nothing is left to measure.
    """
    plane = plane.astype(np.float64)
    patches = sliding_window_view(plane, (SIDE, SIDE))
    texture = texture_strength(plane)
    kept = np.ones(texture.shape, dtype=bool)
    variance = smallest_variance(patches, kept)
    for _ in range(ROUNDS - 1):
        kept = texture < variance * noise_texture()
        if np.count_nonzero(kept) < SIDE**2:
            break
        variance = smallest_variance(patches, kept)
    return float(np.sqrt(max(variance, 0.0)))


def texture_strength(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of squared central differences inside each patch, one value per patch position."""
    across = ((plane[:, 2:] - plane[:, :-2]) / 2) ** 2
    down = ((plane[2:] - plane[:-2]) / 2) ** 2
    return window_sum(across, SIDE, SIDE - 2) + window_sum(down, SIDE - 2, SIDE)


def window_sum(values: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """Sums over every rows x columns window that lies inside."""
    down = sliding_window_view(values, rows, axis=0).sum(axis=-1)
    return np.asarray(sliding_window_view(down, columns, axis=1).sum(axis=-1))


def noise_texture() -> float:
    """The texture strength, for noise of variance 1, below which a patch of noise alone stays.

    The strength of noise is a quadratic form; it is taken as gamma distributed with the form's trace
    as mean and its rank as degrees of freedom, as published.
    """
    form = gradient_form()
    rank, trace = np.linalg.matrix_rank(form), np.trace(form)
    return float(gamma.ppf(CONFIDENCE, rank / 2, scale=2 * trace / rank))


def gradient_form() -> NDArray[np.float64]:
    """Matrix D of the patch's texture strength x^T D x, shape (49, 49)."""
    difference = np.zeros((SIDE - 2, SIDE))
    for i in range(SIDE - 2):
        difference[i, i], difference[i, i + 2] = -0.5, 0.5
    one = difference.T @ difference
    return np.kron(np.eye(SIDE), one) + np.kron(one, np.eye(SIDE))


def smallest_variance(patches: NDArray[np.float64], kept: NDArray[np.bool_]) -> float:
    """Smallest eigenvalue of the covariance of the kept patches (rows, columns, 7, 7)."""
    positions = np.argwhere(kept)
    total, products = np.zeros(SIDE**2), np.zeros((SIDE**2, SIDE**2))
    for start in range(0, len(positions), CHUNK):
        rows, columns = positions[start : start + CHUNK].T
        block = patches[rows, columns].reshape(len(rows), -1)
        total += block.sum(axis=0)
        products += block.T @ block
    mean = total / len(positions)
    covariance = products / len(positions) - np.outer(mean, mean)
    return float(np.linalg.eigvalsh(covariance)[0])


ESTIMATORS = {"wavelet MAD": wavelet, "weak texture": weak_texture}
