"""Noisy images made of clean ones, the same on every call: a case is decided by names and numbers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from training.data.noise import Kernel, NoiseLaw, Plane, add_noise, clip_and_quantise
from training.evaluation.image import HeldBack
from training.seeds import sample_generator

SEED = 30_000_001


@dataclass(frozen=True, eq=False)
class Noise:
    """A law with a name for the tables; `clipped` noise is cut to [0, 1] and rounded to 8 bits."""

    kind: str
    law: NoiseLaw
    clipped: bool = False

    @property
    def level(self) -> float:
        """Standard deviation at mid-grey, unit scale."""
        return float(np.sqrt(self.law.slope * 0.5 + self.law.offset))

    @property
    def level_255(self) -> float:
        """The same in grey levels of 255."""
        return round(self.level * 255, 3)


def white(level_255: float, clipped: bool = False) -> Noise:
    """Additive white Gaussian noise; its level is in grey levels of 255."""
    return Noise("white", NoiseLaw(0.0, (level_255 / 255) ** 2), clipped)


def poisson_gaussian(level_255: float, share: float, clipped: bool = False) -> Noise:
    """White noise of that level at mid-grey, `share` of whose variance there grows with the signal."""
    variance = (level_255 / 255) ** 2
    return Noise(f"Poisson-Gaussian {share:g}", NoiseLaw(2 * share * variance, (1 - share) * variance), clipped)


def coloured(level_255: float, name: str, kernel: Kernel, clipped: bool = False) -> Noise:
    """Gaussian noise of that level with the colour of a kernel (K, K) of unit energy."""
    return Noise(name, NoiseLaw(0.0, (level_255 / 255) ** 2, kernel), clipped)


@dataclass(frozen=True, eq=False)
class Case:
    """One noisy image to restore."""

    image: HeldBack
    noise: Noise
    noisy: Plane

    @property
    def clean(self) -> Plane:
        return self.image.plane

    @property
    def sigma(self) -> float:
        """Root mean square of the noise before clipping, unit scale: what a comparator is told."""
        variance = self.noise.law.slope * self.clean + self.noise.law.offset
        return float(np.sqrt(np.maximum(variance, 0.0).mean(dtype=np.float64)))

    @property
    def key(self) -> str:
        """Identifies the noisy image, the clean one, and what a comparator is told, to the bit."""
        kernel = self.noise.law.kernel
        parts = (self.noisy, self.clean, np.float64(self.sigma), np.zeros(0) if kernel is None else kernel)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:32]


def degrade(image: HeldBack, noise: Noise) -> Case:
    """The draw depends on the image's name and the level alone: laws and clipping are compared on equal draws."""
    seed = int(hashlib.sha256(image.name.encode()).hexdigest()[:12], 16)
    noisy = add_noise(image.plane, noise.law, sample_generator(SEED, seed, round(noise.level * 1e6)))
    return Case(image, noise, clip_and_quantise(noisy, 256) if noise.clipped else noisy)


def degrade_all(images: Iterable[HeldBack], noises: Iterable[Noise]) -> Iterator[Case]:
    """Every image with every noise, image by image; made as they are asked for."""
    noises = list(noises)
    return (degrade(image, noise) for image in images for noise in noises)
