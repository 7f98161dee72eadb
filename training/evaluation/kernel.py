"""Kernels that colour noise as a set of real images has it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from training.data.noise import Kernel
from training.evaluation.image import HeldBack, read_group
from training.noise.correlation import LOWEST_SNR, measure_correlation
from training.noise.spectrum import kernel_of_correlation

ALL = 1 << 20  # images of a set; pixels of a side


def read_kernels(data: Path, sets: Path) -> dict[str, Kernel]:
    """The colours of the sets that the group `coloured` of the file `sets` names."""
    return measure_kernels(read_group(data, sets, "coloured", ALL, ALL))


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
