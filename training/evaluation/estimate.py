"""Noise-level estimates: how far off, on which noise, and at what cost beside the wavelet estimate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from training.comparator.noise_level import ESTIMATORS
from training.data.noise import Kernel, Plane
from training.evaluation.case import Case, Noise, coloured, poisson_gaussian, white
from training.evaluation.table import Row, Table

LEVELS = (5.0, 10.0, 15.0, 25.0, 35.0, 50.0)
SHARES = (0.5, 0.9)  # of the variance at mid-grey that grows with the signal
REFERENCE = "wavelet MAD"
Estimator = Callable[[Plane], float]


def noises(kernels: Mapping[str, Kernel], levels: Sequence[float] = LEVELS) -> list[Noise]:
    """White and two kinds of signal-dependent noise, each clipped or not, and every colour, at every level."""
    return [
        noise
        for level in levels
        for noise in (
            *(white(level, clipped) for clipped in (False, True)),
            *(poisson_gaussian(level, share, clipped) for share in SHARES for clipped in (False, True)),
            *(coloured(level, name, kernel) for name, kernel in kernels.items()),
        )
    ]


def estimate_table(cases: Iterable[Case], estimators: Mapping[str, Estimator]) -> Table:
    """Mean and median relative error in percent per set, kind of noise, clipping and level; then over all levels.

    An estimate is held against the root mean square of the noise that was put on, before clipping.
    """
    estimators = {**estimators, **ESTIMATORS}
    found: dict[tuple[str, str, bool], dict[float, list[list[float]]]] = {}
    for case in tqdm(cases, desc="estimate", mininterval=2):
        errors = [100 * abs(estimator(case.noisy) / case.sigma - 1) for estimator in estimators.values()]
        levels = found.setdefault((case.image.set, case.noise.kind, case.noise.clipped), {})
        levels.setdefault(case.noise.level_255, []).append(errors)
    rows = []
    for key, levels in found.items():
        rows += [error_row(key, level, errors, list(estimators)) for level, errors in sorted(levels.items())]
        rows.append(error_row(key, "all", [row for errors in levels.values() for row in errors], list(estimators)))
    return rows


def error_row(key: tuple[str, str, bool], sigma: float | str, errors: list[list[float]], names: Sequence[str]) -> Row:
    row: Row = dict(zip(("set", "noise", "clipped"), key, strict=True)) | {"sigma": sigma, "images": len(errors)}
    for name, column in zip(names, np.transpose(errors), strict=True):
        row |= {f"{name} mean %": float(np.mean(column)), f"{name} median %": float(np.median(column))}
    return row


def cost_table(plane: Plane, estimators: Mapping[str, Estimator], repeats: int = 7) -> Table:
    """Median CPU time of every estimator on one plane, all in turn, and as a multiple of the wavelet estimate's.

    CPU time of the process over all its threads: other work on the machine does not show in it.
    """
    estimators = {**estimators, **ESTIMATORS}
    seconds: dict[str, list[float]] = {name: [] for name in estimators}
    for repeat in range(repeats + 1):
        for name, estimator in estimators.items():
            started = time.process_time()
            estimator(plane)
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return [
        {
            "estimator": name,
            "pixels": plane.size,
            "milliseconds": 1000 * median,
            "times MAD": median / medians[REFERENCE],
        }
        for name, median in medians.items()
    ]
