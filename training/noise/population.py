"""The noise of real image sets, learned: what stage 3 draws its noise from.

For every set a density over (log a, log b) of the noise-level function a max(s, 0) + b, the range in which its images
lie, the kernels of its noise and whether it is Rician. Half of the draws follow the density; the other half lie
log-uniformly in the range widened twofold, so that levels between and beyond the observed ones are learned too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.noise import KERNEL_SIDE, Kernel, NoiseLaw
from training.noise.mixture import Mixture
from training.noise.spectrum import mixed_with_white
from training.pipeline.record import read_json, write_json

Array = NDArray[np.float64]

VERSION = 1
LOWEST, HIGHEST = 1e-10, 10.0  # of a and of b, unit scale
COMPONENTS_MAX, KERNELS_MAX, SETS_MAX = 4096, 256, 4096
DIGITS = 7


@dataclass(frozen=True)
class Spread:
    """How far draws stray from what was observed."""

    observed_share: float = 0.5  # of the draws that follow the density; the others are log-uniform
    widening: float = 2.0  # of the observed range of a and of b, each way
    white_share: float = 0.1  # of the draws that are white whatever the set
    foreign_share: float = 0.1  # ... that have another set's kernel
    transposed_share: float = 0.25  # ... whose kernel is turned by 90 degrees
    mixed_share: float = 0.2  # ... whose kernel is mixed with white noise

    def __post_init__(self) -> None:
        shares = (self.observed_share, self.white_share, self.foreign_share, self.transposed_share, self.mixed_share)
        if not all(0 <= share <= 1 for share in shares) or self.white_share + self.foreign_share > 1:
            raise ValueError("spread: shares must lie between 0 and 1, white and foreign together too")
        if not 1 <= self.widening <= 100:
            raise ValueError(f"spread.widening: {self.widening} is not within 1 to 100")


@dataclass(frozen=True, eq=False)
class SetPopulation:
    """The noise of one image set."""

    name: str
    modality: str
    weight: float
    rician: bool
    density: Mixture  # over (log a, log b)
    lowest: Array  # (log a, log b) of the least noisy images, (2,) ...
    highest: Array  # ... and of the noisiest
    kernels: tuple[Kernel, ...]  # (K, K), K odd <= 15, unit energy; none is white noise

    def draw_level(self, rng: np.random.Generator, spread: Spread) -> tuple[float, float]:
        """(a, b) of one image."""
        low, high = self.lowest - np.log(spread.widening), self.highest + np.log(spread.widening)
        observed = rng.random() < spread.observed_share
        theta = np.clip(self.density.draw(rng), low, high) if observed else rng.uniform(low, high)
        return float(np.exp(theta[0])), float(np.exp(theta[1]))

    def draw_kernel(self, rng: np.random.Generator) -> Kernel | None:
        """One of the observed kernels."""
        return self.kernels[int(rng.integers(len(self.kernels)))] if self.kernels else None


@dataclass(frozen=True, eq=False)
class LearnedPopulation:
    """The noise of all sets; `draw` gives one image's law."""

    sets: tuple[SetPopulation, ...]
    spread: Spread = Spread()

    def draw(self, rng: np.random.Generator) -> NoiseLaw:
        """One image's law: a set by its weight, its level, its colour."""
        chosen = self.draw_set(rng)
        slope, offset = chosen.draw_level(rng, self.spread)
        return NoiseLaw(slope, offset, self.draw_kernel(chosen, rng), chosen.rician)

    def draw_set(self, rng: np.random.Generator) -> SetPopulation:
        cumulative = np.cumsum([member.weight for member in self.sets])
        return self.sets[min(int(np.searchsorted(cumulative / cumulative[-1], rng.random())), len(self.sets) - 1)]

    def draw_kernel(self, chosen: SetPopulation, rng: np.random.Generator) -> Kernel | None:
        """The colour of one image's noise, now and then another than its set's."""
        kind = rng.random()
        if kind < self.spread.white_share:
            return None
        foreign = kind < self.spread.white_share + self.spread.foreign_share
        kernel = (self.draw_set(rng) if foreign else chosen).draw_kernel(rng)
        if kernel is None:
            return None
        if rng.random() < self.spread.transposed_share:
            kernel = np.ascontiguousarray(kernel.T)
        if rng.random() < self.spread.mixed_share:
            kernel = mixed_with_white(kernel, rng.uniform(0.0, 0.7))
        return kernel


def write_population(path: Path, population: LearnedPopulation) -> None:
    """Writes a population as JSON; equal populations give equal bytes."""
    spread = {key: getattr(population.spread, key) for key in Spread.__dataclass_fields__}
    write_json(path, {"version": VERSION, "spread": spread, "sets": [to_record(member) for member in population.sets]})


def to_record(member: SetPopulation) -> dict[str, Any]:
    density = member.density
    return {
        "name": member.name,
        "modality": member.modality,
        "weight": member.weight,
        "rician": member.rician,
        "density": {key: rounded(getattr(density, key)) for key in ("weights", "means", "covariances")},
        "lowest": rounded(member.lowest),
        "highest": rounded(member.highest),
        "kernels": [rounded(kernel) for kernel in member.kernels],
    }


def rounded(values: NDArray[Any]) -> Any:
    return np.round(values.astype(np.float64), DIGITS).tolist()


def read_population(path: Path) -> LearnedPopulation:
    """A population as it was written. Raises ValueError naming what is missing or outside its limits."""
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        raise ValueError(f"{path.name}: not a noise population of version {VERSION}")
    try:
        spread, records = Spread(**raw["spread"]), raw["sets"]
        require(0 < len(records) <= SETS_MAX, "sets: at least one is needed")
        return LearnedPopulation(tuple(from_record(record) for record in records), spread)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path.name}: {error} is missing or of the wrong kind") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def from_record(record: dict[str, Any]) -> SetPopulation:
    """One set, checked."""
    name, raw = str(record["name"]), record["density"]
    density = Mixture(*(np.asarray(raw[key], dtype=np.float64) for key in ("weights", "means", "covariances")))
    check_density(name, density)
    lowest, highest = (np.asarray(record[key], dtype=np.float64) for key in ("lowest", "highest"))
    require(lowest.shape == highest.shape == (2,), f"{name}: lowest and highest hold two numbers")
    limits = np.log(LOWEST), np.log(HIGHEST)
    require(bool(np.all(limits[0] <= lowest) and np.all(lowest <= highest)), f"{name}: lowest exceeds highest")
    require(bool(np.all(highest <= limits[1])), f"{name}: highest is beyond {HIGHEST}")
    kernels = tuple(np.asarray(kernel, dtype=np.float32) for kernel in record["kernels"])
    require(len(kernels) <= KERNELS_MAX, f"{name}: more than {KERNELS_MAX} kernels")
    for kernel in kernels:
        check_kernel(name, kernel)
    weight = float(record["weight"])
    require(np.isfinite(weight) and weight > 0, f"{name}: weight {weight} is not positive")
    rician = record["rician"]
    require(isinstance(rician, bool), f"{name}: rician is true or false")
    return SetPopulation(name, str(record["modality"]), weight, rician, density, lowest, highest, kernels)


def check_density(name: str, density: Mixture) -> None:
    count = len(density.weights)
    shapes = (density.weights.shape, density.means.shape, density.covariances.shape)
    shared = density.covariances.shape == (1, 2, 2)
    fits = shapes[:2] == ((count,), (count, 2)) and (shared or shapes[2] == (count, 2, 2))
    require(0 < count <= COMPONENTS_MAX and fits, f"{name}: density of shapes {shapes}")
    require(all(np.isfinite(v).all() for v in vars(density).values()), f"{name}: density holds NaN or infinity")
    require(bool((density.weights >= 0).all()) and abs(density.weights.sum() - 1) < 1e-3, f"{name}: density weights")
    positive = bool((np.linalg.eigvalsh(density.covariances) > 0).all())
    require(positive, f"{name}: a covariance of the density is not positive")


def check_kernel(name: str, kernel: Kernel) -> None:
    side = kernel.shape[0] if kernel.ndim == 2 else 0
    good = kernel.shape == (side, side) and side % 2 == 1 and side <= KERNEL_SIDE
    require(good, f"{name}: a kernel of shape {kernel.shape} is not square, odd and at most {KERNEL_SIDE}")
    require(abs(float(np.square(kernel).sum()) - 1) < 1e-3, f"{name}: a kernel has not unit energy")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
