"""From the correlation of noise to its spectrum and to a kernel that makes noise like it.

Noise that is the same law everywhere is white noise through a filter; of all filters with the right power
spectrum the zero-phase one is symmetric and the most compact (its amplitude is the square root of the spectrum).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.optimize import minimize

from training.data.noise import KERNEL_SIDE, SPECTRUM_SIDE, Kernel, kernel_of_amplitude

Array = NDArray[np.float64]

FAR_WEIGHT = 0.05  # of lags beyond those measured, which are taken as 0
NEAR_LAGS = 2
NEAR_WEIGHT = 4.0
ROUNDS = 300


def noise_power(correlation: Array, side: int = SPECTRUM_SIDE) -> Array:
    """Power spectrum (side, side), frequency 0 first, mean 1, of noise with a correlation (K, K); side > K.

    Negative power, which a measured correlation may ask for, becomes 0.
    """
    reach = correlation.shape[0] // 2
    lags = np.arange(-reach, reach + 1)
    wide = np.zeros((side, side))
    wide[lags[:, None], lags[None, :]] = correlation
    power = np.maximum(np.fft.fft2(wide).real, 0.0)
    return np.asarray(power / power.mean())


def kernel_of_correlation(correlation: Array) -> Kernel:
    """The zero-phase kernel (15, 15) of unit energy whose noise has the correlation (K, K), K <= 15.

    The square root of the spectrum, cut to 15 x 15, is where a least-squares fit to the correlation starts;
    lags up to 2 count most, those not measured least.
    """
    target, weight = targets(np.asarray(correlation, dtype=np.float64))
    start = kernel_of_amplitude(np.sqrt(noise_power(correlation))).astype(np.float64)

    def misfit(flat: Array) -> tuple[float, Array]:
        kernel = flat.reshape(KERNEL_SIDE, KERNEL_SIDE)
        error = weight * (self_correlation(kernel) - target)
        gradient = 4 * filtered(kernel, weight * error)
        return float(np.square(error).sum()), gradient.reshape(-1)

    found = minimize(misfit, start.reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": ROUNDS})
    kernel = found.x.reshape(KERNEL_SIDE, KERNEL_SIDE)
    kernel = (kernel + kernel[::-1, ::-1]) / 2  # the start is symmetric, and rounding all that could disturb it
    return np.asarray(kernel / np.sqrt(np.square(kernel).sum()), dtype=np.float32)


def targets(correlation: Array) -> tuple[Array, Array]:
    """Correlation wanted at all lags (29, 29) of a kernel (15, 15), and its weight in the fit."""
    side, reach = 2 * KERNEL_SIDE - 1, correlation.shape[0] // 2
    middle = slice(KERNEL_SIDE - 1 - reach, KERNEL_SIDE + reach)
    near = slice(KERNEL_SIDE - 1 - NEAR_LAGS, KERNEL_SIDE + NEAR_LAGS)
    target, weight = np.zeros((side, side)), np.full((side, side), FAR_WEIGHT)
    target[middle, middle], weight[middle, middle] = correlation, 1.0
    weight[near, near] = NEAR_WEIGHT
    return target, weight


def self_correlation(kernel: Array) -> Array:
    """Sums of products of a kernel (K, K) with itself at every lag, (2K - 1, 2K - 1), lag 0 in the middle."""
    side = 2 * kernel.shape[0] - 1
    power = np.abs(rfft2(kernel, s=(side, side))) ** 2
    return np.asarray(np.fft.fftshift(irfft2(power, s=(side, side))))


def filtered(kernel: Array, weights: Array) -> Array:
    """A kernel (K, K) filtered with symmetric weights (2K - 1, 2K - 1), cut to (K, K)."""
    side, full = kernel.shape[0], 3 * kernel.shape[0] - 2
    product = rfft2(kernel, s=(full, full)) * rfft2(weights, s=(full, full))
    return np.asarray(irfft2(product, s=(full, full))[side - 1 : 2 * side - 1, side - 1 : 2 * side - 1])


def correlation_of_kernel(kernel: Kernel | None, reach: int = 5) -> Array:
    """Correlation (2 reach + 1, 2 reach + 1) of the noise that a kernel makes; None is white."""
    wanted = np.zeros((2 * reach + 1, 2 * reach + 1))
    wanted[reach, reach] = 1.0
    if kernel is None:
        return wanted
    found = self_correlation(kernel.astype(np.float64))
    found /= found[found.shape[0] // 2, found.shape[0] // 2]
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            row, column = down + found.shape[0] // 2, across + found.shape[0] // 2
            inside = 0 <= row < found.shape[0] and 0 <= column < found.shape[0]
            wanted[down + reach, across + reach] = found[row, column] if inside else 0.0
    return wanted


def mixed_with_white(kernel: Kernel, share: float) -> Kernel:
    """The kernel of noise, `share` of whose variance is white and the rest of the kernel's colour."""
    power = np.abs(np.fft.fft2(kernel.astype(np.float64), s=(SPECTRUM_SIDE, SPECTRUM_SIDE))) ** 2
    return kernel_of_amplitude(np.sqrt((1 - share) * power / power.mean() + share))
