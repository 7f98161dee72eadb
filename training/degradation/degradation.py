"""How a high-resolution crop is made small: one interface, three ways, and any mixture of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from training.data.noise import Plane, Population
from training.degradation.bicubic import BicubicDegradation
from training.degradation.blind import BlindDegradation
from training.degradation.config import DegradationConfig
from training.degradation.learned import LearnedDegradation


class Degradation(Protocol):
    """Makes low-resolution images of high-resolution ones, aligned by pixel area."""

    def degrade(self, high: Plane, rng: np.random.Generator) -> Plane:
        """high (sH, sW), unit scale, as low (H, W), not clipped; the same of the same `high` and state of `rng`."""
        ...


@dataclass(frozen=True)
class DegradationMixture:
    """One of several degradations for every crop, by their shares."""

    members: tuple[Degradation, ...]
    cumulative: tuple[float, ...]  # shares, summed; the last is 1

    def degrade(self, high: Plane, rng: np.random.Generator) -> Plane:
        chosen = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
        return self.members[min(chosen, len(self.members) - 1)].degrade(high, rng)


def build_degradation(
    config: DegradationConfig, scale: int, population: Population | None, learned: LearnedDegradation | None
) -> Degradation:
    """The degradation that a configuration describes.

    `population` is the noise of the blind share; without one it is the configuration's own broad population.
    Raises ValueError where the configuration has a share of `pdm` and nothing learned is given, or of another scale.
    """
    members: list[tuple[float, Degradation]] = []
    if config.bicubic:
        members.append((config.bicubic, BicubicDegradation(config.classical, scale)))
    if config.blind:
        members.append((config.blind, BlindDegradation(config.handmade, scale, population or config.handmade.noise)))
    if config.pdm:
        if learned is None:
            raise ValueError("degradation.pdm: nothing is learned yet; learn the degradation first, or set pdm to 0")
        if learned.scale != scale:
            raise ValueError(f"degradation.pdm: learned at x{learned.scale}, and x{scale} is asked for")
        members.append((config.pdm, learned))
    shares = np.cumsum([share for share, _ in members])
    return DegradationMixture(tuple(one for _, one in members), tuple(float(s) for s in shares / shares[-1]))
