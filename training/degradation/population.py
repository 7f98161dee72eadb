"""The noise of low-resolution image sets from the images alone: no network, no clean image.

Flat patches tell level and colour, as in `training.noise.correlation`. Small images have few, and the flattest of them
are often texture: only patches count whose variance is about the same all over, as that of noise is, and about that
of the image's flattest. How variance grows with signal is fitted to the patches of the whole set; how noisy an image
is among its like, to its own where it has enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from training.data.noise import Kernel, Plane
from training.noise.correlation import (
    LOWEST_SNR,
    PATCH,
    PATCHES_MAX,
    PATCHES_MIN,
    ROUNDING,
    FlatPatches,
    correlation_of_patches,
    degrees_of_freedom,
    kept_share,
    noisy_patches,
    remove_surface,
)
from training.noise.level_function import median_of_mean, variance_factor
from training.noise.mixture import fit_density
from training.noise.population import LearnedPopulation, SetPopulation, Spread
from training.noise.spectrum import kernel_of_correlation

Array = NDArray[np.float64]

MAGNITUDE = "MR"
BINS = 8  # of brightness
BLOCKS = 3  # parts of a patch, each way, whose variances are compared
UNEVEN = 1.6  # largest over median variance of the parts of a patch; texture and edges have more
ENOUGH = (24, 16, 12, PATCHES_MIN)  # quiet patches of an image that is trusted: as many as enough images have
IMAGES_MIN = 4
LOUDER = 1.3  # variance of a patch over that of the image's flattest; more is texture
SMALLEST_SHARE = 0.03  # of the variance: a smaller part of it makes no difference
LEAST = 1e-9  # variance, unit scale
WHITE = 0.05  # correlation below which noise is white as far as can be measured


@dataclass(frozen=True, eq=False)
class MeasuredNoise:
    """The noise of one set: variance a max(s, 0) + b at signal s for every image, and the colour of all."""

    laws: Array  # (images, 2): a, b
    correlation: Array  # (11, 11)
    signal: float  # the median of the flat patches

    @property
    def levels(self) -> Array:
        """Standard deviation of each image at the set's median signal, (images,)."""
        return np.asarray(np.sqrt(self.laws @ np.array([self.signal, 1.0])))

    @property
    def kernel(self) -> Kernel:
        """What colours white noise so; a single 1 where it is white."""
        beside = np.abs(self.correlation).copy()
        beside[tuple(side // 2 for side in beside.shape)] = 0.0
        return np.ones((1, 1), np.float32) if beside.max() < WHITE else kernel_of_correlation(self.correlation)


def measure_population(
    planes: Mapping[str, Sequence[Plane]], modalities: Mapping[str, str] | None = None, spread: Spread | None = None
) -> LearnedPopulation:
    """The population of the noise of image sets by name, planes (H, W) on the unit scale.

    `modalities`: DICOM codes of sets; the noise of MR images without negative values is Rician. Sets without flat
    patches that hold noise are left out; raises ValueError where no set is left.
    """
    members = []
    for name, images in planes.items():
        modality = (modalities or {}).get(name, "")
        rician = modality == MAGNITUDE and min(float(plane.min()) for plane in images) >= 0
        if (noise := measure_noise(images, rician)) is not None:
            members.append(describe(name, modality, rician, noise))
    if not members:
        raise ValueError(f"degradation: no flat patch of {', '.join(planes)} holds noise that could be measured")
    return LearnedPopulation(tuple(members), spread or Spread())


def describe(name: str, modality: str, rician: bool, noise: MeasuredNoise) -> SetPopulation:
    """A set's noise as the density that training draws from."""
    points = np.log(noise.laws)
    weight = float(np.sqrt(len(points)))
    low, high = np.quantile(points, 0.005, axis=0), np.quantile(points, 0.995, axis=0)
    return SetPopulation(name, modality, weight, rician, fit_density(points), low, high, (noise.kernel,))


def measure_noise(planes: Sequence[Plane], rician: bool = False) -> MeasuredNoise | None:
    """The noise of one set's planes (H, W); None where fewer than 8 patches hold noise and nothing else.

    Of magnitude images (`rician`) only what is bright enough for Gaussian noise counts.
    """
    quiet = quietest([quiet_patches(plane, LOWEST_SNR if rician else 0.0) for plane in planes])
    correlation = correlation_of_patches(quiet)
    if correlation is None:
        return None
    lost = kept_share(correlation) * median_of_mean(degrees_of_freedom(correlation))
    signal = np.concatenate([patches.signal for patches in quiet]).astype(np.float64)
    variance = np.maximum(np.concatenate([energy(patches.noise) for patches in quiet]) / lost, LEAST)
    law = fit_law(signal, variance)
    rich = [patches for patches in quiet if len(patches) >= PATCHES_MIN]
    factors = [variance_factor(patches, law, correlation) for patches in rich] or [1.0]
    middle = float(np.median(signal))
    return MeasuredNoise(np.array([significant(law, factor, middle) for factor in factors]), correlation, middle)


def quietest(images: Sequence[FlatPatches]) -> list[FlatPatches]:
    """Of the images' patches those of images that have many: where few are quiet, they may be even texture."""
    for least in ENOUGH:
        if len(chosen := [patches for patches in images if len(patches) >= least]) >= IMAGES_MIN:
            return chosen
    return list(images)


def quiet_patches(plane: Plane, lowest_snr: float = 0.0) -> FlatPatches:
    """The patches (24, 24) of a plane (H, W) that hold noise and nothing else; maybe none.

    With `lowest_snr` only patches whose mean is that many of their own deviations above 0.
    """
    patches, _ = noisy_patches(plane)
    noise, signal = remove_surface(patches), patches.mean((1, 2))
    power = energy(noise)
    blocks = np.square(noise).reshape(-1, *(BLOCKS, PATCH // BLOCKS) * 2).mean((2, 4)).reshape(-1, BLOCKS**2)
    even = blocks.max(1, initial=0.0) <= UNEVEN * np.median(blocks, axis=1)
    even &= power > (ROUNDING * np.abs(plane).max(initial=0.0)) ** 2
    even &= signal > lowest_snr * np.sqrt(power) if lowest_snr else True
    even &= power <= LOUDER * power[even].min(initial=np.inf)
    chosen = np.flatnonzero(even)
    chosen = chosen[:: max(1, -(-len(chosen) // PATCHES_MAX))]
    return FlatPatches(noise[chosen], signal[chosen])


def energy(noise: Plane) -> Plane:
    """Mean square of each patch (N, 24, 24)."""
    return np.asarray(np.square(noise).mean((1, 2)))


def fit_law(signal: Array, variance: Array) -> tuple[float, float]:
    """(a, b), neither negative, of variance a max(s, 0) + b: least squares of the relative error of bins' medians."""
    bins = np.array_split(np.argsort(signal, kind="stable"), max(1, min(BINS, len(signal) // PATCHES_MIN)))
    bright, middle = (np.array([np.median(values[part]) for part in bins]) for values in (signal, variance))
    rows = np.stack([np.maximum(bright, 0), np.ones_like(bright)], axis=1) / middle[:, None]
    a, b = nnls(rows, np.ones(len(rows)))[0]
    return float(a), float(b)


def significant(law: tuple[float, float], factor: float, signal: float) -> tuple[float, float]:
    """(a, b) multiplied; neither so small that it only spreads the logarithms."""
    floor = max(SMALLEST_SHARE * factor * (law[0] * max(signal, 0.0) + law[1]), LEAST)
    return max(law[0] * factor, floor), max(law[1] * factor, floor)
