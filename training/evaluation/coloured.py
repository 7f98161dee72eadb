"""Noise of measured colours on clean images: how well it is removed, and how well its level is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tqdm import tqdm

from training.comparator.noise_level import ESTIMATORS
from training.data.noise import Kernel, correlations
from training.evaluation.case import Case, coloured, degrade
from training.evaluation.image import HeldBack
from training.evaluation.score import Comparisons, restored_score, score
from training.evaluation.table import Row, Table, mean
from training.restorer import Restorer

LEVELS = (5.0, 15.0, 30.0)
Found = dict[str, list[list[float]]]


def coloured_table(
    images: Sequence[HeldBack],
    kernels: Mapping[str, Kernel],
    restorers: Mapping[str, Restorer],
    specialists: Mapping[str, Restorer],
    comparisons: Comparisons,
    levels: Iterable[float] = LEVELS,
) -> Table:
    """Per set, kernel and level: PSNR and SSIM of all methods; mean relative error of the level in percent.

    `lags` are the noise's correlations one row down, one column across, two rows, two columns.

    `specialists` are by kernel, each trained on exactly that colour; a restorer's distance to its
    specialist is `NAME behind` in dB.
    """
    found: dict[tuple[str, str, float], Found] = {}
    cases = [(level, name) for name in kernels for level in levels]
    for image in tqdm(images, desc="coloured", mininterval=2):
        for level, name in cases:
            case = degrade(image, coloured(level, name, kernels[name]))
            scores = found.setdefault((image.set, name, level), {})
            score_case(case, restorers, specialists.get(name), comparisons, scores)
    return [coloured_row(key, scores, restorers, kernels) for key, scores in found.items()]


def score_case(
    case: Case,
    restorers: Mapping[str, Restorer],
    specialist: Restorer | None,
    comparisons: Comparisons,
    found: Found,
) -> None:
    """Adds one case's scores [PSNR, SSIM] and level errors [percent] to what was found."""
    scores = {"noisy": score(case.noisy, case.clean)}
    scores |= {method: comparisons.scores(method, case) for method in ("BM3D", "BM3D (spectrum)")}
    for name, restorer in restorers.items():
        scores[name] = restored_score(restorer, case)
        scores[f"{name}, told"] = restored_score(restorer, case, told=True)
    if specialist:
        scores["specialist"] = restored_score(specialist, case)
    estimators = {name: restorer.noise_level for name, restorer in restorers.items()} | ESTIMATORS
    for name, estimator in estimators.items():
        scores[f"{name} level error %"] = [100 * abs(estimator(case.noisy) / case.sigma - 1)]
    for method, value in scores.items():
        found.setdefault(method, []).append(value)


def coloured_row(
    key: tuple[str, str, float], scores: Found, restorers: Iterable[str], kernels: Mapping[str, Kernel]
) -> Row:
    row: Row = dict(zip(("set", "noise", "sigma"), key, strict=True))
    row["lags"] = [round(value, 3) for value in correlations(kernels[key[1]])]  # 1 and 2, down and across
    row["images"] = len(scores["noisy"])
    means = {method: mean(values) for method, values in scores.items()}
    row |= {method: value if len(value) == 2 else value[0] for method, value in means.items()}
    if "specialist" in row:
        row |= {f"{name} behind": row["specialist"][0] - row[name][0] for name in restorers}
    return row
