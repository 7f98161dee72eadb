"""Kernels that colour noise as a set of real images has it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from training.data.noise import SPECTRUM_SIDE, Kernel, kernel_of_amplitude
from training.evaluation.image import HeldBack
from training.noise.correlation import Array, measure_correlation

TISSUE_SNR = 3.0  # signal, in deviations, from which on a patch counts: the noise of MR air is another one


def measure_kernels(images: Iterable[HeldBack]) -> dict[str, Kernel]:
    """A kernel per set, measured on the flat patches of all its images; raises ValueError for a set without any."""
    sets: dict[str, list[HeldBack]] = {}
    for image in images:
        sets.setdefault(image.set, []).append(image)
    kernels = {}
    for name, members in sets.items():
        correlation = measure_correlation((image.plane for image in members), TISSUE_SNR)
        if correlation is None:
            raise ValueError(f"{name}: too few flat patches to measure the noise's colour on")
        kernels[name] = kernel_of_correlation(correlation)
    return kernels


def kernel_of_correlation(correlation: Array) -> Kernel:
    """The zero-phase kernel (15, 15) whose noise has that correlation (11, 11), as nearly as a spectrum can.

    A measured correlation may ask for negative power at some frequency; there the power is 0.
    """
    grid = np.zeros((SPECTRUM_SIDE, SPECTRUM_SIDE))
    grid[: correlation.shape[0], : correlation.shape[1]] = correlation
    centred = np.roll(grid, [-(side // 2) for side in correlation.shape], axis=(0, 1))
    return kernel_of_amplitude(np.sqrt(np.fft.fft2(centred).real.clip(0)))
