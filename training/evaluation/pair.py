"""Real pairs of a noisy scan and a cleaner one of the same place, whose grey scales need not agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.comparator.denoiser import COMPARATORS
from training.data.noise import NoiseLaw, Plane
from training.data.source import SUFFIXES, read_plane
from training.evaluation.score import Comparisons, Scores, score
from training.evaluation.table import Row, Table, gain, mean
from training.restorer import Restorer

NOISY, CLEAN = "_noisy", "_clean"  # endings of the names of a pair
METHODS = ("BM3D", "NLM")
LEVELS = (8.0, 12.0, 18.0, 25.0, 35.0, 50.0, 70.0, 100.0)  # tried for each method, grey levels of 255


@dataclass(frozen=True, eq=False)
class Pair:
    """One place, scanned twice; planes (H, W) on the unit scale."""

    set: str
    name: str
    noisy: Plane
    clean: Plane

    @property
    def key(self) -> str:
        return hashlib.sha256(self.noisy.tobytes() + self.clean.tobytes()).hexdigest()[:32]


def find_pairs(data: Path) -> Iterator[Pair]:
    """Every `X_noisy` with an `X_clean` beside it below a folder, in name order; a set is a folder."""
    for noisy in sorted(path for path in data.rglob(f"*{NOISY}.*") if path.suffix.lower() in SUFFIXES):
        clean = noisy.with_name(noisy.name.replace(NOISY, CLEAN))
        if clean.is_file():
            planes = (
                stored.astype(np.float32) / np.float32(scale) for stored, scale in map(read_plane, (noisy, clean))
            )
            yield Pair(noisy.parent.relative_to(data).as_posix(), noisy.name, *planes)


def fitted(answer: Plane, clean: Plane) -> Plane:
    """The answer after the gain and offset that bring it closest to the clean plane (least squares)."""
    design = np.stack([answer.ravel(), np.ones(answer.size)], axis=1, dtype=np.float64)
    (slope, offset), *_ = np.linalg.lstsq(design, clean.ravel().astype(np.float64))
    return (slope * answer + offset).astype(np.float32)


def pair_table(pairs: Iterable[Pair], restorers: Mapping[str, Restorer], comparisons: Comparisons) -> Table:
    """PSNR and SSIM after gain and offset are fitted, per set: restorers blind, and everyone at their best level.

    The best level is searched for each image over `LEVELS` (white), against the clean plane itself: what
    a method told a single number can at most do.
    """
    found: dict[str, dict[str, list[Scores]]] = {}
    for pair in tqdm(pairs, desc="pairs", mininterval=2):
        methods = {"noisy": score(fitted(pair.noisy, pair.clean), pair.clean)}
        methods |= {method: best_comparison(method, pair, comparisons) for method in METHODS}
        for name, restorer in restorers.items():
            methods[name] = score(fitted(restorer.restore(pair.noisy), pair.clean), pair.clean)
            methods[f"{name}, best level"] = max(at_level(restorer, pair, level) for level in LEVELS)
        for method, scores in methods.items():
            found.setdefault(pair.set, {}).setdefault(method, []).append(scores)
    return [pair_row(set, methods, list(restorers)) for set, methods in found.items()]


def best_comparison(method: str, pair: Pair, comparisons: Comparisons) -> Scores:
    """The highest of a comparator's scores over the levels."""

    def compute(level: float) -> Scores:
        answer = COMPARATORS[method](pair.noisy, level / 255, None)
        return score(fitted(answer, pair.clean), pair.clean)

    return max(
        comparisons.remembered(f"{method} fitted {level:g}:{pair.key}", partial(compute, level)) for level in LEVELS
    )


def at_level(restorer: Restorer, pair: Pair, level: float) -> Scores:
    """A restorer's score when it is told white noise of that level."""
    answer = restorer.restore(pair.noisy, law=NoiseLaw(0.0, (level / 255) ** 2))
    return score(fitted(answer, pair.clean), pair.clean)


def pair_row(set: str, methods: Mapping[str, list[Scores]], names: Iterable[str]) -> Row:
    row: Row = {"set": set, "pairs": len(methods["noisy"])}
    row |= {method: mean(scores) for method, scores in methods.items()}
    return row | {f"{name} over {method}": gain(row, name, method) for name in names for method in METHODS}
