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
RAYLEIGH = (1.75, 2.1)  # mean over deviation of magnitudes without signal is 1.91, of about 600 values
RAYLEIGH_SHARE = 2 - np.pi / 2  # their variance over the noise's
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
        return np.asarray(np.sqrt(self.laws @ np.array([max(self.signal, 0.0), 1.0])))

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

    Of magnitude images (`rician`) only what is bright enough for Gaussian noise counts, or, where that is hardly ever
    even, maybe the background.
    """
    chosen = quietest([quiet_patches(plane, LOWEST_SNR if rician else 0.0) for plane in planes])
    found = [noise_of_patches(chosen)]
    if rician and len(chosen) == 1:
        found.append(background_noise(planes))
    # Whatever is mistaken for noise adds to it.
    return min((each for each in found if each), key=lambda each: float(np.median(each.levels)), default=None)


def noise_of_patches(chosen: Sequence[FlatPatches]) -> MeasuredNoise | None:
    """The noise in quiet patches, image by image; None where they are fewer than 8."""
    correlation = correlation_of_patches(chosen)
    if correlation is None:
        return None
    lost = kept_share(correlation) * median_of_mean(degrees_of_freedom(correlation))
    signal = np.concatenate([patches.signal for patches in chosen]).astype(np.float64)
    variance = np.maximum(np.concatenate([energy(patches.noise) for patches in chosen]) / lost, LEAST)
    law = fit_law(signal, variance)
    factors = [variance_factor(patches, law, correlation) for patches in chosen if len(patches) >= PATCHES_MIN]
    middle = float(np.median(signal))
    return MeasuredNoise(np.array([significant(law, factor, middle) for factor in factors]), correlation, middle)


def quietest(images: Sequence[FlatPatches]) -> list[FlatPatches]:
    """Of the images' patches those of images that have many: where few are quiet, they may be even texture.

    Where no four images have enough, the least noisy third of all patches, as if of one image.
    """
    for least in ENOUGH:
        if len(chosen := [patches for patches in images if len(patches) >= least]) >= IMAGES_MIN:
            return chosen
    noise, signal = (np.concatenate([getattr(p, name) for p in images]) for name in ("noise", "signal"))
    seen = (signal >= 0) & (signal <= 1)
    if seen.sum() >= PATCHES_MIN:  # the air around a CT has another noise than the body
        noise, signal = noise[seen], signal[seen]
    count = max(PATCHES_MIN, len(noise) // 3)
    kept = np.argsort(energy(noise), kind="stable")[:count]
    return [FlatPatches(noise[kept], signal[kept])]


def background_noise(planes: Sequence[Plane]) -> MeasuredNoise | None:
    """The noise of magnitude images from where there is no signal; None where fewer than 8 patches are of such kind.

    There the values are Rayleigh distributed: their mean over their deviation says whether they are, their variance is
    0.43 of the noise's, their correlation about the square of its (Gudbjartsson and Patz, 1995).
    """
    dark = [quiet_patches(plane, *RAYLEIGH) for plane in planes]
    found = correlation_of_patches(dark)
    if found is None:
        return None
    levels = [float(np.median(energy(patches.noise))) for patches in dark if len(patches) >= PATCHES_MIN]
    levels = levels or [float(np.median(np.concatenate([energy(patches.noise) for patches in dark])))]
    laws = [significant((0.0, max(level / kept_share(found) / RAYLEIGH_SHARE, LEAST)), 1.0, 0.0) for level in levels]
    return MeasuredNoise(np.array(laws), np.sqrt(np.maximum(found, 0.0)), 0.0)


def quiet_patches(plane: Plane, lowest_snr: float = 0.0, highest_snr: float = np.inf) -> FlatPatches:
    """The patches (24, 24) of a plane (H, W) that hold noise and nothing else; maybe none.

    With `lowest_snr` only patches whose mean is that many of their own deviations above 0, at most `highest_snr`.
    """
    patches, _ = noisy_patches(plane)
    noise, signal = remove_surface(patches), patches.mean((1, 2))
    power = energy(noise)
    blocks = np.square(noise).reshape(-1, *(BLOCKS, PATCH // BLOCKS) * 2).mean((2, 4)).reshape(-1, BLOCKS**2)
    even = blocks.max(1, initial=0.0) <= UNEVEN * np.median(blocks, axis=1)
    even &= power > (ROUNDING * np.abs(plane).max(initial=0.0)) ** 2
    if lowest_snr:
        even &= (signal > lowest_snr * np.sqrt(power)) & (signal < highest_snr * np.sqrt(power))
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
