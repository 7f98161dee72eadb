"""Super-resolvers beside interpolation, by set and degradation, and whether they keep to grid and input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from skimage.registration import phase_cross_correlation
from torch.nn import functional as F
from tqdm import tqdm

from training.data.noise import Plane
from training.evaluation.reduction import Reduction
from training.evaluation.score import Scores, score
from training.evaluation.table import Row, Table, mean
from training.evaluation.upscaler import Upscale, enlarge
from training.metric import gradient_similarity, psnr

BASE = "bicubic"  # the interpolation that gains are over
MEANS = ("similarity", "GMSD", "consistency", "consistency of the truth")


@dataclass(frozen=True)
class Answer:
    """What one method made of one image."""

    scores: Scores  # [PSNR, SSIM], clipped to [0, 1]
    similarity: float  # of the gradients' magnitudes, mean ...
    deviation: float  # ... and GMSD
    consistency: float  # PSNR of the answer, reduced again, against the input; neither clipped
    gain: float  # in PSNR over bicubic interpolation, dB
    shift: float  # against bicubic interpolation, high-resolution pixels


def superresolution_table(cases: Iterable[Reduction], scale: int, models: Mapping[str, Upscale]) -> Table:
    """One row per set, degradation and method.

    `PSNR / SSIM`, `similarity`, `GMSD` and `consistency` are means over the images. To compare, `consistency of the
    truth` is what the original, reduced again, has: all but the noise. `smallest gain` is that of the worst image over
    bicubic interpolation, and `worst shift` the largest of any image.
    """
    found: dict[tuple[str, str], dict[str, list[Answer]]] = {}
    truths: dict[tuple[str, str], list[float]] = {}
    for case in tqdm(cases, desc=f"x{scale}", mininterval=2):
        key = (case.image.set, case.degradation)
        truths.setdefault(key, []).append(psnr(case.again(case.high), case.low))
        for method, answer in answers(case, scale, models).items():
            found.setdefault(key, {}).setdefault(method, []).append(answer)
    return [row(key, name, made, truths[key]) for key, methods in found.items() for name, made in methods.items()]


def row(key: tuple[str, str], method: str, answers: list[Answer], truths: list[float]) -> Row:
    gains = [answer.gain for answer in answers]
    return {
        "set": key[0],
        "degradation": key[1],
        "images": len(answers),
        "method": method,
        "PSNR / SSIM": mean(answer.scores for answer in answers),
        "gain": None if method == BASE else float(np.mean(gains)),
        "smallest gain": None if method == BASE else min(gains),
        "similarity": float(np.mean([answer.similarity for answer in answers])),
        "GMSD": float(np.mean([answer.deviation for answer in answers])),
        "consistency": float(np.mean([answer.consistency for answer in answers])),
        "consistency of the truth": float(np.mean(truths)),
        "worst shift": max(answer.shift for answer in answers),
    }


def summary(rows: Table) -> Table:
    """One row per degradation and method over all sets, each of equal weight; the worst image and shift of any."""
    found: dict[tuple[str, str], Table] = {}
    for one in rows:
        found.setdefault((one["degradation"], one["method"]), []).append(one)
    return [
        {"degradation": kind, "sets": len(sets), "images": sum(one["images"] for one in sets), "method": method}
        | {"PSNR / SSIM": mean(one["PSNR / SSIM"] for one in sets)}
        | {"gain": None if method == BASE else float(np.mean([one["gain"] for one in sets]))}
        | {"smallest gain": None if method == BASE else min(one["smallest gain"] for one in sets)}
        | {key: float(np.mean([one[key] for one in sets])) for key in MEANS}
        | {"worst shift": max(one["worst shift"] for one in sets)}
        for (kind, method), sets in found.items()
    ]


def answers(case: Reduction, scale: int, models: Mapping[str, Upscale]) -> dict[str, Answer]:
    """What every method makes of one image."""
    methods = {BASE: partial(bicubic, scale), "Lanczos": partial(lanczos, scale)} | dict(models)
    base = bicubic(scale, case.low)
    made: dict[str, Answer] = {}
    for name, upscale in methods.items():
        answer = enlarge(case.low, upscale, scale)
        scores, shown = score(answer, case.high), np.clip(answer, 0, 1)
        made[name] = Answer(
            scores,
            *gradient_similarity(shown, case.high),
            consistency=psnr(case.again(answer), case.low),
            gain=scores[0] - made[BASE].scores[0] if made else 0.0,
            shift=shift(answer, base),
        )
    return made


def shift(answer: Plane, base: Plane) -> float:
    """Larger of the shifts down and across, in pixels, between an answer and bicubic interpolation.

    That one's grid is right by construction: against the original, what the reduction took away can shift the
    peak of the correlation by itself. Both are faded out towards the edges: to a Fourier transform one edge of a smooth
    image lies beside the other, and that step outweighs what is within.
    """
    window = np.outer(*(np.hanning(length) for length in base.shape))
    within = [(plane - np.average(plane, weights=window)) * window for plane in (base, answer)]
    found, _, _ = phase_cross_correlation(*within, upsample_factor=100, normalization=None)
    return float(np.abs(found).max())


def bicubic(scale: int, low: Plane) -> Plane:
    """Bicubic interpolation with a = -0.75: what our networks add to, and 0.1 to 0.6 dB above the field's a = -0.5."""
    image = torch.from_numpy(low)[None, None]
    large: Plane = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)[0, 0].numpy()
    return large


def lanczos(scale: int, low: Plane) -> Plane:
    """Lanczos interpolation over six pixels."""
    size = (low.shape[1] * scale, low.shape[0] * scale)
    return np.array(Image.fromarray(low).resize(size, Image.Resampling.LANCZOS))  # a copy, which can be written to
