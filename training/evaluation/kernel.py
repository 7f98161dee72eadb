"""Kernels that colour noise as a set of real images has it."""

from __future__ import annotations

from collections.abc import Iterable

from training.data.noise import Kernel
from training.evaluation.image import HeldBack
from training.noise.correlation import LOWEST_SNR, measure_correlation
from training.noise.spectrum import kernel_of_correlation


def measure_kernels(images: Iterable[HeldBack]) -> dict[str, Kernel]:
    """A kernel per set, measured on the flat patches of all its images; raises ValueError for a set without any."""
    sets: dict[str, list[HeldBack]] = {}
    for image in images:
        sets.setdefault(image.set, []).append(image)
    kernels = {}
    for name, members in sets.items():
        correlation = measure_correlation((image.plane for image in members), LOWEST_SNR)
        if correlation is None:
            raise ValueError(f"{name}: too few flat patches to measure the noise's colour on")
        kernels[name] = kernel_of_correlation(correlation)
    return kernels
