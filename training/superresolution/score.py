"""What a run's networks make of high-resolution images that were held back, beside interpolation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from models.imaging.reduction import BEST_DB
from training.data.crop import middle
from training.data.noise import Plane
from training.degradation.bicubic import reduce_plane
from training.degradation.config import BicubicConfig, DegradationConfig
from training.degradation.degradation import Degradation
from training.evaluation.image import HeldBack
from training.evaluation.reduction import Reduction
from training.evaluation.superresolution import Answer, answers
from training.evaluation.upscaler import Upscale
from training.pipeline.record import AuditedImage, read_plane
from training.seeds import sample_generator

BICUBIC, DRAWN = "bicubic", "drawn"
MODEL, VARIANT = "model", "adversarial"
SEED = 41_000_000  # of the draws
MARGIN_DB = 3.0  # between the least consistent image here and what is promised
Scores = dict[str, Answer]  # by method


@dataclass(frozen=True, eq=False)
class Scored:
    """One held-back image, made small in one way, and how every method did."""

    case: Reduction
    answers: Scores


def spread(images: Sequence[AuditedImage], count: int) -> list[AuditedImage]:
    """At most `count` of some images, evenly spread."""
    places = np.linspace(0, len(images) - 1, count if images else 0)
    return [images[i] for i in np.unique(places.round().astype(int))]


def held_back(out: Path, images: Iterable[AuditedImage], side: int) -> Iterator[HeldBack]:
    """The middles of planes, at most side x side, cut to [0, 1]."""
    for image in images:
        yield HeldBack(image.set, image.id, np.clip(middle(read_plane(out, image.file), side), 0, 1))


def differs(mixture: DegradationConfig) -> bool:
    """Whether a degradation is any other than bicubic reduction and nothing else."""
    return bool(mixture.blind or mixture.pdm) or mixture.classical != BicubicConfig()


def cases(images: Sequence[HeldBack], scale: int, degradation: Degradation | None) -> Iterator[Reduction]:
    """Every image by bicubic reduction and, if there is one, by a draw of a degradation; always the same."""
    again = partial(reduce_plane, scale=scale)
    for number, image in enumerate(images):
        yield Reduction(image, BICUBIC, again(image.plane), again)
        if degradation is not None:
            low = degradation.degrade(image.plane, sample_generator(SEED, scale, number))
            yield Reduction(image, DRAWN, low, again)


def score_all(found: Iterable[Reduction], scale: int, models: Mapping[str, Upscale]) -> list[Scored]:
    """What bicubic and Lanczos interpolation and the models make of every case."""
    return [Scored(case, answers(case, scale, models)) for case in tqdm(found, desc="scores", mininterval=2)]


def table(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Means by set, degradation and method; `smallest_gain` over bicubic interpolation is the worst image's."""
    found: dict[tuple[str, str, str], list[Answer]] = {}
    for one in scored:
        for method, answer in one.answers.items():
            found.setdefault((one.case.image.set, one.case.degradation, method), []).append(answer)
    return [
        {
            "set": name,
            "degradation": degradation,
            "method": method,
            "images": len(made),
            "psnr": float(np.mean([answer.scores[0] for answer in made])),
            "ssim": float(np.mean([answer.scores[1] for answer in made])),
            "gain": float(np.mean([answer.gain for answer in made])),
            "smallest_gain": min(answer.gain for answer in made),
            "consistency": float(np.mean([answer.consistency for answer in made])),
            "shift": float(np.median([answer.shift for answer in made])),
        }
        for (name, degradation, method), made in found.items()
    ]


def constancy(model: Upscale, scale: int) -> float:
    """Largest difference of a constant image's enlargement from the constant, unit scale; infinite for a wrong size."""
    worst = 0.0
    for value in (0.0, 0.37, 1.0):
        large = model(np.full((40, 52), value, np.float32))
        right = large.shape == (40 * scale, 52 * scale)
        worst = max(worst, float(np.abs(large - value).max()) if right else float("inf"))
    return worst


def promised_consistency(scored: Sequence[Scored], method: str, scale: int, model: Upscale) -> float | None:
    """dB that every held-back image's result, reduced again, reaches with a margin; None where there are none.

    The peak is the range of the low-resolution image, as the service has it. A result that is far below that is not
    what this model does with images of the kind it knows. Within what a manifest holds, 0 to 120 dB.
    """
    found = []
    for case in (one.case for one in scored if method in one.answers):
        error = float(np.mean(np.square(reduce_plane(model(case.low), scale) - case.low, dtype=np.float64)))
        found.append(10 * np.log10(max(float(np.ptp(case.low)) ** 2, 1e-12) / max(error, 1e-12)))
    return round(float(np.clip(min(found) - MARGIN_DB, 0.0, BEST_DB)), 1) if found else None


def enlarged(low: Plane, scale: int) -> Plane:
    """Every pixel as a square: how the low-resolution image is shown beside the others."""
    return np.kron(low, np.ones((scale, scale), np.float32))
