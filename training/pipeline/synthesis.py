"""Stage 2: learns the population of the noise that stage 1 found, and reports how well draws from it resemble it.

Reads `audit/` and `preliminary/`; writes `synthesis/population.json`, which stage 3 draws from, and
`synthesis/synthesis.json`, the fit report; `synthesis/laws.json` has what was found for each training image, and
whether its flat patches bear that out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.noise import LAGS, Kernel
from training.noise.agreement import describe_fit
from training.noise.correlation import LOWEST_SNR, REACH, FlatPatches, correlation_of_patches, flat_patches
from training.noise.level_function import variance_factor
from training.noise.mixture import fit_density
from training.noise.population import LearnedPopulation, SetPopulation, Spread, write_population
from training.noise.spectrum import kernel_of_correlation
from training.pipeline.record import (
    PRELIMINARY_IMAGES,
    Audit,
    NoiseRow,
    NoisyImage,
    read_audit,
    read_json,
    read_plane,
    read_table,
    write_json,
)

Array = NDArray[np.float64]
Law = tuple[float, float]  # (a, b): variance a max(s, 0) + b at signal s

POPULATION = Path("synthesis", "population.json")
REPORT = Path("synthesis", "synthesis.json")
LAWS = Path("synthesis", "laws.json")
FLOOR_SHARE = 0.03  # of an image's variance: a smaller a or b makes no difference
OWN_PATCHES = 24  # flat patches of an image that tell its own correlations
TRUSTED_PATCHES = 12  # with fewer, what passes for flat may be fine structure
AGREEMENT = 2.0  # factor by which the variance of the flat patches may differ from stage 1's
WHITE = 0.05  # correlation below which noise is white as far as can be measured


@dataclass(frozen=True)
class SynthesisConfig:
    """How the observed noise becomes a population."""

    spread: Spread = field(default_factory=Spread)
    weight_power: float = 0.5  # a set of n images weighs n to this power: 0 all sets alike, 1 all images
    kernels: int = 8  # of one set at most: of the patients with the most images, and of the set as a whole
    patches: int = 48  # flat patches that a patient's own kernel needs
    draws: int = 2000  # from the population, for the report

    def __post_init__(self) -> None:
        if not 0 <= self.weight_power <= 1:
            raise ValueError(f"synthesis.weight_power: {self.weight_power} is not within 0 and 1")
        if min(self.kernels, self.patches, self.draws) < 1:
            raise ValueError("synthesis: kernels, patches and draws must be 1 at least")


def run(out: Path, config: SynthesisConfig, *, seed: int) -> None:
    """Makes `synthesis/` of a run. Raises ValueError where stage 1 left no image's noise."""
    audit = read_audit(out)
    rows = rows_by_set(audit, read_table(out))
    if not rows:
        raise ValueError("synthesis: stage 1 found the noise of no training image")
    colours, laws, factors, told = {}, {}, {}, dict[str, Told]()
    for name in tqdm(rows, "noise", disable=None):
        patches = {image.id: patches_of(out, image, audit) for image in audit.noisy("train") if image.set == name}
        colours[name] = measure(audit, name, patches, config)
        factors[name] = [variance_factor(patches[row.id], (row.a, row.b), colours[name][0]) for row in rows[name]]
        laws[name] = [significant(row, factor) for row, factor in zip(rows[name], factors[name], strict=True)]
        for row, law, factor in zip(rows[name], laws[name], factors[name], strict=True):
            told[row.id] = told_of(law, factor, patches[row.id], colours[name][0])
    members = tuple(learn_set(audit, name, laws[name], colours[name], config) for name in rows)
    population = LearnedPopulation(members, config.spread)
    report = describe_fit(population, laws, colours, config.draws, seed)
    for name, found in report["sets"].items():  # what the flat patches made of stage 1's levels
        found["level_factor"] = [round(float(q), 3) for q in np.quantile(np.sqrt(factors[name]), (0.1, 0.5, 0.9))]
    write_population(out / POPULATION, population)
    write_json(out / LAWS, {id: asdict(one) for id, one in told.items()})
    write_json(out / REPORT, report)


@dataclass(frozen=True)
class Told:
    """What a denoiser is told of the noise of one image: slope, offset, floor, correlations at `LAGS`."""

    parameters: tuple[float, ...]
    trusted: bool  # whether stage 1 and enough flat patches, each by itself, found about the same level


def told_of(law: Law, factor: float, patches: FlatPatches, correlation: Array) -> Told:
    """An image's law, with its own correlations where its flat patches tell them, else those of its set (11, 11).

    `factor` is what the flat patches made of the variance that stage 1 found.
    """
    own = correlation_of_patches([patches]) if len(patches) >= OWN_PATCHES else None
    lags = [float((correlation if own is None else own)[REACH + down, REACH + across]) for down, across in LAGS]
    trusted = len(patches) >= TRUSTED_PATCHES and 1 / AGREEMENT < factor < AGREEMENT
    return Told((*law, law[1], *lags), trusted)


def read_told(out: Path) -> dict[str, Told]:
    """What is known of each training image's noise, by its id. Raises ValueError for a file of another form."""
    document = read_json(out / LAWS)
    if not all(isinstance(one, dict) for one in document.values()):
        raise ValueError(f"{LAWS} is of an earlier version; make stage synthesis anew with --redo")
    return {id: Told(tuple(one["parameters"]), one["trusted"]) for id, one in document.items()}


def rows_by_set(audit: Audit, table: Sequence[NoiseRow]) -> dict[str, list[NoiseRow]]:
    """The rows of the training images of each set, sets by name."""
    train = {image.id for image in audit.noisy("train")}
    found: dict[str, list[NoiseRow]] = {}
    for row in table:
        if row.id in train:
            found.setdefault(row.set, []).append(row)
    return dict(sorted(found.items()))


def learn_set(
    audit: Audit, name: str, laws: Sequence[Law], correlations: Sequence[Array], config: SynthesisConfig
) -> SetPopulation:
    """The population of one set from the laws of its images and the correlations (11, 11) found in it."""
    points = np.log(laws)
    record = audit.sets[name]
    return SetPopulation(
        name=name,
        modality=record.modality,
        weight=float(len(laws) ** config.weight_power),
        rician=record.rician,
        density=fit_density(points),
        lowest=np.quantile(points, 0.005, axis=0),
        highest=np.quantile(points, 0.995, axis=0),
        kernels=tuple(colour(correlation) for correlation in correlations),
    )


def significant(row: NoiseRow, factor: float) -> Law:
    """(a, b) of an image, its variance multiplied; neither so small that it only spreads the logarithms."""
    floor = max(FLOOR_SHARE * row.level**2, 1e-9)
    return max(row.a, floor) * factor, max(row.b, floor) * factor


def colour(correlation: Array) -> Kernel:
    """The kernel of a correlation (11, 11); a single 1 where it is white as far as can be measured."""
    reach = correlation.shape[0] // 2
    beside = np.abs(correlation).copy()
    beside[reach, reach] = 0.0
    return np.ones((1, 1), np.float32) if beside.max() < WHITE else kernel_of_correlation(correlation)


def measure(audit: Audit, name: str, patches: Mapping[str, FlatPatches], config: SynthesisConfig) -> list[Array]:
    """Noise correlations (11, 11) of a set as a whole, then of its patients with the most flat patches.

    The audit's figure stands in where the flat patches of the images (by id) are not enough.
    """
    whole = correlation_of_patches(list(patches.values()))
    if whole is None:
        return [np.array(audit.sets[name].correlation)]
    groups: dict[str, list[FlatPatches]] = {}
    for image in audit.images:
        if image.id in patches:
            groups.setdefault(image.group, []).append(patches[image.id])
    rich = {g: p for g, p in groups.items() if sum(map(len, p)) >= config.patches}
    chosen = sorted(rich, key=lambda g: (-sum(map(len, rich[g])), g))[: config.kernels - 1] if len(groups) > 1 else []
    single = (correlation_of_patches(rich[group]) for group in chosen)
    return [whole, *(c for c in single if c is not None)]


def patches_of(out: Path, image: NoisyImage, audit: Audit) -> FlatPatches:
    """Patches of a noisy image where stage 1's result is flat; none if stage 1 made no result."""
    noisy, restored = read_plane(out, image.file), PRELIMINARY_IMAGES / f"{image.id}.npy"
    smooth = read_plane(out, str(restored)) if (out / restored).exists() else None
    return flat_patches(noisy, LOWEST_SNR if audit.sets[image.set].rician else 0.0, smooth)
