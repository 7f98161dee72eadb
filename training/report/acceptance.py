"""Whether a run may become the default: what is asked of the pipeline as a whole, measured on held-back images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.data.crop import middle
from training.data.noise import Population
from training.evaluation.case import Case, Noise, degrade, white
from training.evaluation.denoise import reduced
from training.evaluation.image import HeldBack
from training.evaluation.score import Comparisons, restored_score
from training.metric import psnr
from training.pipeline.record import Audit, ImageSet, read_plane
from training.report.config import ReportConfig
from training.report.model import RunModel
from training.restorer import Restorer
from training.seeds import sample_generator

PASS, FAIL, ABSENT = "pass", "fail", "not applicable"
BLIND_LOSS_DB = 0.15
UNTOUCHED_DB = 45.0
WHITENESS = 0.1  # by which the lag-1 correlation of what was removed may differ from that of the noise
BIAS_HU = 1.0
LEARNED = "learned"
SEED = 40_000_000  # of the laws drawn from the learned population
DECISIVE = ("BM3D", "blind", "noise-free")  # a run without these figures is not accepted
Row = dict[str, Any]


def clean_images(out: Path, audit: Audit, config: ReportConfig) -> list[HeldBack]:
    """Clean test images, evenly spread, at half their size: a photograph's own noise must not count as the truth."""
    images = [image for image in audit.clean if image.split == "test"]
    chosen = np.unique(np.linspace(0, len(images) - 1, config.images).round().astype(int)) if images else []
    halves = [reduced(HeldBack("clean", images[i].id, read_plane(out, images[i].file))) for i in chosen]
    return [replace(image, plane=middle(image.plane, config.side)) for image in halves]


def cases_of(images: Sequence[HeldBack], population: Population, config: ReportConfig) -> list[Case]:
    """Every image with white noise of every level, and with laws drawn from the learned population."""
    cases = [degrade(image, white(level)) for image in images for level in config.levels]
    for i, image in enumerate(images):
        for draw in range(config.draws):
            law = population.draw(sample_generator(SEED, i, draw))
            cases.append(degrade(image, Noise(LEARNED, law)))
    return cases


def score_table(cases: Sequence[Case], models: Mapping[str, Restorer], comparisons: Comparisons) -> list[Row]:
    """PSNR per noise: noisy, BM3D told the level and colour, and every model, blind and told the law."""
    found: dict[str, dict[str, list[float]]] = {}
    for case in tqdm(cases, desc="acceptance", mininterval=2):
        noise = LEARNED if case.noise.kind == LEARNED else f"white {case.noise.level_255:g}"
        columns = found.setdefault(noise, {})
        scores = {"noisy": psnr(np.clip(case.noisy, 0, 1), case.clean)}
        if find_spec("bm3d"):
            coloured = case.noise.law.kernel is not None
            scores["BM3D"] = comparisons.scores("BM3D (spectrum)" if coloured else "BM3D", case)[0]
        for name, model in models.items():
            scores[name] = restored_score(model, case)[0]
            scores[f"{name}, told"] = restored_score(model, case, told=True)[0]
        for column, value in scores.items():
            columns.setdefault(column, []).append(value)
    return [
        {"noise": noise, "images": len(columns["noisy"])} | {c: float(np.mean(v)) for c, v in columns.items()}
        for noise, columns in found.items()
    ]


def untouched(images: Sequence[HeldBack], model: Restorer) -> list[float]:
    """PSNR of output against input where there is no noise."""
    return [min(psnr(model.restore(image.plane), image.plane), 99.0) for image in images]


def row(check: str, asked: str, found: str, verdict: bool | None, note: str = "") -> Row:
    """One line of the table; a verdict of None is "not applicable"."""
    word = ABSENT if verdict is None else PASS if verdict else FAIL
    return {"check": check, "asked": asked, "found": found, "verdict": word, "note": note}


def streams_row(scores: Sequence[Row], model: str) -> Row:
    """Both streams together against each alone."""
    asked = "PSNR above S1 alone and S2 alone, on the learned noise"
    learned = next((r for r in scores if r["noise"] == LEARNED), {})
    others = {name: learned[name] for name in ("S1", "S2") if name in learned}
    if len(others) < 2:
        return row("S1+S2", asked, "", None, "needs runs on each stream alone (report.alone)")
    gains = {name: learned[model] - value for name, value in others.items()}
    text = ", ".join(f"{gain:+.2f} dB over {name}" for name, gain in gains.items())
    return row("S1+S2", asked, text, min(gains.values()) > 0)


def bm3d_row(scores: Sequence[Row], model: str) -> Row:
    """Blind, against BM3D told the true level, at every noise."""
    asked = "PSNR above BM3D with the true level, at every level and on the learned noise"
    gains = {r["noise"]: r[model] - r["BM3D"] for r in scores if "BM3D" in r}
    if not gains:
        return row("BM3D", asked, "", None, "needs clean test images, and the package bm3d")
    text = ", ".join(f"{noise}: {gain:+.2f}" for noise, gain in gains.items()) + " dB"
    return row("BM3D", asked, text, min(gains.values()) > 0)


def blind_row(scores: Sequence[Row], model: str) -> Row:
    """What estimating the noise costs."""
    asked = f"at most {BLIND_LOSS_DB} dB below the same model told the true noise"
    losses = {r["noise"]: r[f"{model}, told"] - r[model] for r in scores}
    if not losses:
        return row("blind", asked, "", None, "there are no clean test images")
    worst = max(losses, key=losses.__getitem__)
    return row("blind", asked, f"at most {losses[worst]:.2f} dB ({worst})", losses[worst] <= BLIND_LOSS_DB)


def untouched_row(found: Sequence[float]) -> Row:
    """Noise-free input comes back as it was."""
    asked = f"PSNR of output against input at least {UNTOUCHED_DB:g} dB, every image"
    if not found:
        return row("noise-free", asked, "", None, "there are no clean test images")
    return row("noise-free", asked, f"{min(found):.1f} to {max(found):.1f} dB", min(found) >= UNTOUCHED_DB)


def whiteness_row(sets: Mapping[str, Row]) -> Row:
    """What was removed has the correlation of the noise."""
    asked = f"lag-1 correlation of what was removed within {WHITENESS} of the noise's, every set"
    gaps = {}
    for name, found in sets.items():
        noise, removed = found["lag1"]["noise"], found["lag1"]["removed"]
        if noise:  # and nothing removed where there is noise is as wrong as can be
            gaps[name] = max(abs(a - b) for a, b in zip(noise, removed, strict=True)) if removed else 1.0
    if not gaps:
        return row("residual", asked, "", None, "no set has flat regions to measure it on")
    text = ", ".join(f"{name}: {gap:.2f}" for name, gap in gaps.items())
    return row("residual", asked, text, max(gaps.values()) <= WHITENESS)


def bias_row(sets: Mapping[str, Row], audit: Audit) -> Row:
    """CT numbers do not shift."""
    asked = f"mean shift in uniform regions below {BIAS_HU:g} HU, every CT set"
    shifts = {n: f["bias"] for n, f in sets.items() if in_hounsfield(audit.sets[n]) and f["bias"] is not None}
    if not shifts:
        return row("HU bias", asked, "", None, "there is no CT set in HU")
    text = ", ".join(f"{name}: {shift:+.2f} HU" for name, shift in shifts.items())
    return row("HU bias", asked, text, max(map(abs, shifts.values())) < BIAS_HU)


def in_hounsfield(record: ImageSet) -> bool:
    """Whether a set's real values are HU, or stored values one HU apart: a CT of 8 bits has been windowed."""
    return record.modality == "CT" and record.high - record.low > 255


def accept(
    out: Path, audit: Audit, sets: Mapping[str, Row], model: Restorer, population: Population, config: ReportConfig
) -> dict[str, Any]:
    """The acceptance table, the scores behind it, and whether the run passed as a whole."""
    images = clean_images(out, audit, config)
    models = {"model": model} | {name: RunModel(Path(run) / "profound") for name, run in config.alone.items()}
    comparisons = Comparisons(Path(config.scores) if config.scores else out / "report" / "scores.jsonl")
    scores = score_table(cases_of(images, population, config), models, comparisons)
    free = untouched(images, model)
    rows = [
        streams_row(scores, "model"),
        bm3d_row(scores, "model"),
        blind_row(scores, "model"),
        untouched_row(free),
        whiteness_row(sets),
        bias_row(sets, audit),
    ]
    return {"rows": rows, "passed": passed(rows), "scores": scores, "noise_free_psnr": free}


def passed(rows: Sequence[Row], decisive: Sequence[str] = DECISIVE) -> bool:
    """No check failed, and none of the decisive ones was left out."""
    verdicts = {r["check"]: r["verdict"] for r in rows}
    return FAIL not in verdicts.values() and all(verdicts.get(name) == PASS for name in decisive)
