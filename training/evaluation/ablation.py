"""Variants of one denoiser side by side on known noise, each blind and told the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tqdm import tqdm

from training.data.noise import Kernel
from training.evaluation.case import Case, Noise, coloured, poisson_gaussian, white
from training.evaluation.score import Comparisons, Scores, restored_score, score
from training.evaluation.table import Row, Table, mean
from training.restorer import Restorer

LEVELS = (5.0, 10.0, 15.0, 25.0, 35.0, 50.0)
POISSON_GAUSSIAN = ((15.0, 0.5), (30.0, 0.9))  # level at mid-grey, share of the variance that grows with the signal
COLOURED_LEVEL = 15.0
CEILING = "ceiling"  # the variant that was trained with the true noise law


def noises(kernels: Mapping[str, Kernel], levels: Iterable[float] = LEVELS) -> list[Noise]:
    """White noise at every level, two signal-dependent laws, and one of each colour."""
    return [
        *(white(level) for level in levels),
        *(poisson_gaussian(level, share) for level, share in POISSON_GAUSSIAN),
        *(coloured(COLOURED_LEVEL, name, kernel) for name, kernel in kernels.items()),
    ]


@dataclass
class Found:
    """Scores of one method under one noise: on its own estimate, and told the true law."""

    blind: list[Scores] = field(default_factory=list)
    told: list[Scores] = field(default_factory=list)


def ablation_table(
    cases: Iterable[Case], variants: Mapping[str, Restorer], comparisons: Comparisons, ceiling: str = CEILING
) -> Table:
    """One row per set, noise and method: mean PSNR and SSIM blind and told, and the distances in dB.

    `blind loss`: told less blind. `over BM3D`: blind (told, for a method that must be) over BM3D with
    the true sigma. `behind ceiling`: the ceiling's blind score less this one's.
    """
    found: dict[tuple[str, str, float, bool], dict[str, Found]] = {}
    for case in tqdm(cases, desc="ablation", mininterval=2):
        key = (case.image.set, case.noise.kind, case.noise.level_255, case.noise.clipped)
        score_case(case, variants, comparisons, found.setdefault(key, {}))
    return [row for key, methods in found.items() for row in ablation_rows(key, methods, ceiling)]


def score_case(
    case: Case, variants: Mapping[str, Restorer], comparisons: Comparisons, methods: dict[str, Found]
) -> None:
    """Adds one case's scores of every method."""
    methods.setdefault("noisy", Found()).blind.append(score(case.noisy, case.clean))
    spectrum = ["BM3D (spectrum)"] if case.noise.law.kernel is not None else []
    for method in ["BM3D", *spectrum]:
        methods.setdefault(method, Found()).told.append(comparisons.scores(method, case))
    for name, variant in variants.items():
        scores = methods.setdefault(name, Found())
        scores.blind.append(restored_score(variant, case))
        scores.told.append(restored_score(variant, case, told=True))


def ablation_rows(key: tuple[str, str, float, bool], methods: Mapping[str, Found], ceiling: str) -> list[Row]:
    rows: list[Row] = []
    for method, scores in methods.items():
        row = dict(zip(("set", "noise", "sigma", "clipped"), key, strict=True))
        blind, told = (mean(s) if s else None for s in (scores.blind, scores.told))
        row |= {"images": len(scores.blind or scores.told), "method": method, "blind": blind, "told": told}
        row["blind loss"] = told[0] - blind[0] if blind and told else None
        rows.append(row)
    best = {row["method"]: (row["blind"] or row["told"])[0] for row in rows}
    for row in rows:
        own = best[row["method"]]
        row["over BM3D"] = own - best["BM3D"]
        row["behind ceiling"] = best[ceiling] - own if ceiling in best else None
    return rows
