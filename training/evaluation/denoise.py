"""Denoising of white noise: a restorer beside comparators that are told the level; CT in HU; clean input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from training.data.noise import NoiseLaw, Plane
from training.data.source import area_reduce
from training.evaluation.case import Case, Noise, degrade
from training.evaluation.image import HeldBack
from training.evaluation.score import Comparisons, Scores, compare, restored_score, score
from training.evaluation.table import Row, Table, gain, mean
from training.metric import psnr
from training.restorer import Restorer

LEVELS = (15.0, 25.0, 50.0)  # standard deviations in grey levels of 255
TOLD = ("BM3D", "NLM")  # the comparators, which know the true level
HU_LEVELS = (3, 10, 30, 100)
HU_SPAN = 4095.0  # HU on the unit scale of a CT


def denoising_table(cases: Iterable[Case], restorers: Mapping[str, Restorer], comparisons: Comparisons) -> Table:
    """Mean PSNR and SSIM per set, level and clipping, of every method, and what each restorer gains over BM3D."""
    found: dict[tuple[str, float, bool], dict[str, list[Scores]]] = {}
    for case in tqdm(cases, desc="denoise", mininterval=2):
        methods = found.setdefault((case.image.set, case.noise.level_255, case.noise.clipped), {})
        methods.setdefault("noisy", []).append(score(case.noisy, case.clean))
        for method in TOLD:
            methods.setdefault(method, []).append(comparisons.scores(method, case))
        for name, restorer in restorers.items():
            methods.setdefault(name, []).append(restored_score(restorer, case))
    return [
        with_gains(
            {"set": name, "sigma": sigma, "clipped": clipped, "images": len(methods["noisy"])}
            | {method: mean(rows) for method, rows in methods.items()},
            restorers,
        )
        for (name, sigma, clipped), methods in found.items()
    ]


def with_gains(row: Row, names: Iterable[str]) -> Row:
    """The row with `NAME over BM3D` in dB for every restorer."""
    return row | {f"{name} over BM3D": gain(row, name, "BM3D") for name in names}


def hounsfield_table(images: Sequence[HeldBack], restorers: Mapping[str, Restorer], comparisons: Comparisons) -> Table:
    """Root mean square error in HU before and after, per set, beside BM3D told the level; 0 HU is the clean image."""
    rows = []
    for level in (0, *HU_LEVELS):
        errors: dict[str, dict[str, list[float]]] = {}
        for image in images:
            case = degrade(image, Noise("white", NoiseLaw(0.0, (level / HU_SPAN) ** 2)))
            found = {"before": error_hu(case.noisy, case)}
            found |= {name: error_hu(restorer.restore(case.noisy), case) for name, restorer in restorers.items()}
            found["BM3D"] = bm3d_error_hu(case, comparisons) if level else 0.0
            for name, error in found.items():
                errors.setdefault(image.set, {}).setdefault(name, []).append(error)
        rows += [
            {"set": name, "noise_hu": level} | {method: float(np.mean(values)) for method, values in found.items()}
            for name, found in errors.items()
        ]
    return rows


def error_hu(answer: Plane, case: Case) -> float:
    """Root mean square difference from the clean CT, HU."""
    return HU_SPAN * float(np.sqrt(np.mean((answer - case.clean) ** 2, dtype=np.float64)))


def bm3d_error_hu(case: Case, comparisons: Comparisons) -> float:
    return comparisons.remembered(f"BM3D HU:{case.key}", lambda: [error_hu(compare("BM3D", case), case)])[0]


def untouched_table(images: Iterable[HeldBack], restorers: Mapping[str, Restorer]) -> Table:
    """PSNR of output against input where no noise was added; target 45 dB."""
    return [
        {"set": image.set, "image": image.name}
        | {name: psnr(restorer.restore(image.plane), image.plane) for name, restorer in restorers.items()}
        for image in images
    ]


def reduced(image: HeldBack) -> HeldBack:
    """The image at half its size, its own noise averaged away."""
    return replace(image, plane=area_reduce(image.plane, 2))
