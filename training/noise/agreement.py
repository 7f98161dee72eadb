"""How well a learned population resembles the noise that it was learned from, or the noise that is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from training.noise.correlation import REACH
from training.noise.population import LearnedPopulation, SetPopulation
from training.noise.spectrum import correlation_of_kernel
from training.seeds import sample_generator

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LAGS = {"down_1": (1, 0), "across_1": (0, 1), "down_2": (2, 0), "across_2": (0, 2), "diagonal_1": (1, 1)}
STREAM = 60_000_000  # added to a run's seed
MIDDLE = 0.5  # signal at which levels are compared, unit scale


def describe_fit(
    population: LearnedPopulation,
    laws: Mapping[str, Sequence[tuple[float, float]]],
    correlations: Mapping[str, Sequence[Array]],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The fit report: for every set the observed laws (a, b) and correlations (11, 11) beside those drawn."""
    sets = {
        member.name: describe_set(population, member, laws[member.name], correlations[member.name], draws, seed, number)
        for number, member in enumerate(population.sets)
    }
    return {"draws": draws, "spread": asdict(population.spread), "signal_of_level": MIDDLE, "sets": sets}


def describe_set(
    population: LearnedPopulation,
    member: SetPopulation,
    laws: Sequence[tuple[float, float]],
    correlations: Sequence[Array],
    draws: int,
    seed: int,
    number: int,
) -> dict[str, Any]:
    """Observed and drawn quantiles, Kolmogorov-Smirnov distances, and correlations of one set.

    `density` is of draws from the fitted density alone, `all` also of those meant to go beyond what was observed.
    """
    rng = sample_generator(seed + STREAM, number, 0)
    density = np.exp([member.density.draw(rng) for _ in range(draws)])
    everything = np.array([member.draw_level(rng, population.spread) for _ in range(draws)])
    kernels = [correlation_of_kernel(member.draw_kernel(rng)) for _ in range(min(draws, 100))]
    found = {"observed": np.array(laws), "density": density, "all": everything}
    measured = {name: quantities(values) for name, values in found.items()}
    return {
        "images": len(laws),
        "modality": member.modality,
        "rician": member.rician,
        "components": len(member.density.weights),
        "quantiles": {name: {q: quantiles(v) for q, v in values.items()} for name, values in measured.items()},
        "ks": {
            name: {q: distance(measured["observed"][q], measured[name][q]) for q in measured["observed"]}
            for name in ("density", "all")
        },
        "correlation": {"observed": lags(correlations), "kernels": lags(kernels)},
        "kernels": len(member.kernels),
    }


def quantities(laws: Array) -> dict[str, Array]:
    """Level at mid-grey, a and b of laws (N, 2)."""
    return {"level": np.sqrt(laws[:, 0] * MIDDLE + laws[:, 1]), "a": laws[:, 0], "b": laws[:, 1]}


def quantiles(values: Array) -> list[float]:
    return [float(f"{value:.5g}") for value in np.quantile(values, QUANTILES)]


def distance(first: Array, second: Array) -> float:
    """Largest difference of two empirical distributions, 0 to 1."""
    return round(float(ks_2samp(first, second, method="asymp").statistic), 4)


def lags(correlations: Sequence[Array]) -> dict[str, list[float]]:
    """Mean, smallest and largest correlation at each of `LAGS`."""
    stack = np.array(correlations)
    found = {name: stack[:, REACH + down, REACH + across] for name, (down, across) in LAGS.items()}
    return {name: [round(float(f(v)), 4) for f in (np.mean, np.min, np.max)] for name, v in found.items()}
