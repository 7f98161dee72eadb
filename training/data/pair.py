"""Pairs to learn from: (degraded, clean), as torch datasets indexed by sample number.

Sample n of a run is sample n % batch of step n // batch; it depends on (seed, step, index) alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.networks.denoiser import LEVEL
from training.data.crop import CropMixture, vary_intensity
from training.data.noise import Plane, Population, add_noise, clip_and_quantise
from training.degradation.degradation import Degradation
from training.seeds import sample_generator


@dataclass(frozen=True)
class PairConfig:
    """How a clean crop becomes a training pair."""

    crop: int = 128  # side of a clean crop
    dark_share: float = 0.25  # crops whose dark end is cut to black
    invert_share: float = 0.15
    clip_share: float = 0.4  # of noisy crops, clipped to [0, 1] ...
    quantise_share: float = 0.5  # ... and of those, rounded to 8 bits


@dataclass(eq=False)
class Pairs(Dataset[dict[str, Tensor]], ABC):
    """Common part of all pair datasets: numbering and seeds."""

    crops: CropMixture
    config: PairConfig
    seed: int
    batch: int
    steps: int

    def __len__(self) -> int:
        return self.batch * self.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = sample_generator(self.seed, number // self.batch, number % self.batch)
        clean = vary_intensity(
            self.crops.draw(self.config.crop, rng), rng, self.config.dark_share, self.config.invert_share
        )
        return self.degrade(clean, rng)

    @abstractmethod
    def degrade(self, clean: Plane, rng: np.random.Generator) -> dict[str, Tensor]:
        """The pair made of one clean crop."""


@dataclass(eq=False)
class NoisyPairs(Pairs):
    """Clean crops with noise of the population; `told` are the parameters, now and then a bit wrong."""

    population: Population
    misjudged_share: float = 0.1

    def degrade(self, clean: Plane, rng: np.random.Generator) -> dict[str, Tensor]:
        law = self.population.draw(rng)
        noisy = add_noise(clean, law, rng)
        if rng.random() < self.config.clip_share:
            noisy = clip_and_quantise(noisy, 256 if rng.random() < self.config.quantise_share else None)
        told = misjudge(law.parameters, rng) if rng.random() < self.misjudged_share else law.parameters
        return {
            "image": torch.from_numpy(noisy.astype(np.float32))[None],
            "clean": torch.from_numpy(clean)[None],
            "parameters": torch.from_numpy(law.parameters),
            "told": torch.from_numpy(told),
        }


def misjudge(parameters: Plane, rng: np.random.Generator) -> Plane:
    """Parameters (7,) as an estimator might get them wrong: level by 0.7 to 1.4, correlations by about 0.1."""
    told = parameters.copy()
    told[: len(LEVEL)] *= np.float32(np.exp(2 * rng.uniform(np.log(0.7), np.log(1.4))))
    told[len(LEVEL) :] += rng.normal(0.0, 0.1, len(told) - len(LEVEL)).astype(np.float32)
    return told


@dataclass(eq=False)
class ReducedPairs(Pairs):
    """Low- and high-resolution crops, aligned by pixel area.

    Crops are cut to [0, 1] first: a degradation may clip, or take magnitudes, and beyond the range (air and bone
    outside of a CT window) the pair would then tell of two different images.
    """

    scale: int
    degradation: Degradation

    def degrade(self, clean: Plane, rng: np.random.Generator) -> dict[str, Tensor]:
        clean = np.clip(clean, 0, 1)
        low = self.degradation.degrade(clean, rng)
        return {"image": torch.from_numpy(low)[None], "clean": torch.from_numpy(clean)[None]}
