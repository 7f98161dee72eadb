"""Stage report: measures what a run achieved and writes `report/report.json` and `report/report.html`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from training.data.crop import middle
from training.data.noise import Plane, correlations
from training.degradation.learned import LearnedDegradation
from training.evaluation.superresolution import bicubic
from training.evaluation.upscaler import RunUpscaler, Upscale
from training.noise.population import LearnedPopulation
from training.pipeline.plan import Plan
from training.pipeline.record import PIPELINE, AuditedImage, read_json, read_plane, write_json
from training.report.page import (
    HTML,
    JSON,
    NAMES,
    PUBLIC,
    curves_section,
    finite,
    marked_up,
    numbered,
    read_report,
    refusals,
    run_section,
    seen_before,
    write_page,
)
from training.seeds import sample_generator
from training.superresolution.acceptance import accept
from training.superresolution.degradation import found_degradation, found_population, read_degradation, read_mixture
from training.superresolution.plan import plan_of
from training.superresolution.record import PictureAudit, PictureSet, of_split, read_pictures
from training.superresolution.score import (
    BICUBIC,
    DRAWN,
    MODEL,
    VARIANT,
    Scored,
    cases,
    differs,
    enlarged,
    held_back,
    promised_consistency,
    score_all,
    spread,
    table,
)
from training.train import RUN

PAGE = "superresolve.html"
DRAWS = 400  # laws of the learned noise
TRAINED = ("degradation", "restore", "adversarial")  # stages, in the order of the page
SHOWN = 6  # images of the figure of the learned degradation


@dataclass(frozen=True)
class ReportConfig:
    """How much the report measures and shows."""

    images: int = 32  # held-back images of each set that are scored
    side: int = 256  # of larger images the middle is scored
    panels: int = 1  # images shown of each set
    panel_side: int = 192  # high-resolution pixels of each picture
    name_sets: bool = False  # name sets by folder, not by number: only where folders name nobody
    terms: dict[str, str] = field(default_factory=dict)  # set's name, as a glob -> licence of its images, for the card

    def __post_init__(self) -> None:
        if self.images < 1 or self.side < 48 or self.panels < 0 or self.panel_side < 48:
            raise ValueError("report: images >= 1, side and panel_side >= 48 and panels >= 0 are needed")


@dataclass(frozen=True, eq=False)
class Material:
    """What a report is made of; sets are called as they are in the report."""

    plan: Plan
    audit: PictureAudit
    terms: dict[str, str]  # of the images of a set: "high CT 1" -> licence
    scale: int
    models: dict[str, Upscale]
    learned: LearnedDegradation | None
    population: LearnedPopulation | None


def run(out: Path, config: ReportConfig, *, seed: int) -> None:
    """Measures and writes both files."""
    material = gather(out, config)
    report, scored = measure(out, material, config, seed)
    write_json(out / "report" / JSON, finite(report))
    written = read_report(out)
    shown, private = panels(out, material, scored, config), draws(out, material, seed)
    write_page(out / "report" / HTML, PAGE, report=written, figures=figures(written, private), panels=shown)
    write_page(out / "report" / PUBLIC, PAGE, report=written, figures=figures(written), panels={})


def gather(out: Path, config: ReportConfig) -> Material:
    """The run as the report sees it; what each set was called stays in the run's folder."""
    record = read_json(out / PIPELINE)
    plan = plan_of(record)
    audit, names = nameless(read_pictures(out), config.name_sets)
    write_json(out / "report" / NAMES, names)
    folders = {MODEL: "restore", **({VARIANT: "adversarial"} if "adversarial" in plan.stages else {})}
    models: dict[str, Upscale] = {name: RunUpscaler(out / folder).restore for name, folder in folders.items()}
    scale, _ = read_mixture(out)
    terms = {new: terms_of(old, config.terms) for new, old in names.items()}
    return Material(plan, audit, terms, scale, models, found_degradation(out), found_population(out))


def terms_of(name: str, terms: dict[str, str]) -> str:
    """The licence of a set's images: of the first glob that fits; empty where none does."""
    return next((text for glob, text in terms.items() if fnmatchcase(name, glob)), "")


def nameless(audit: PictureAudit, keep: bool) -> tuple[PictureAudit, dict[str, str]]:
    """The same with sets called "high CT 1", "low MR 1", ..., and what each was called before."""
    changed: dict[str, Any] = {}
    known: dict[str, str] = {}
    for side in ("high", "low"):
        sets: dict[str, PictureSet] = getattr(audit, f"{side}_sets")
        kinds = {name: "photographs" if one.photographs else one.modality for name, one in sets.items()}
        names = numbered(kinds, keep)
        images: tuple[AuditedImage, ...] = getattr(audit, side)
        changed[side] = tuple(dataclasses.replace(image, set=names[image.set]) for image in images)
        changed[f"{side}_sets"] = {names[name]: record for name, record in sets.items()}
        known |= {f"{side} {new}": old for old, new in names.items()}
        for old, new in names.items():  # partition's warnings begin with a set's name
            warnings = changed.get("warnings", audit.warnings)
            changed["warnings"] = tuple(w.replace(f"{side} {old}: ", f"{side} {new}: ", 1) for w in warnings)
    return dataclasses.replace(audit, **changed), known


def measure(out: Path, material: Material, config: ReportConfig, seed: int) -> tuple[dict[str, Any], list[Scored]]:
    """All numbers of the report, and the images that they were measured on."""
    audit, scale, models = material.audit, material.scale, material.models
    _, mixture = read_mixture(out)
    test = of_split(audit.high, "test")
    chosen = [one for name in audit.high_sets for one in spread([i for i in test if i.set == name], config.images)]
    degradation = read_degradation(out) if differs(mixture) else None
    scored = score_all(cases(list(held_back(out, chosen, config.side)), scale, degradation), scale, models)
    scores = table(scored)
    accepted = accept(scores, mixture, models, scale)
    promised = {name: promised_consistency(scored, name, scale, model) for name, model in models.items()}
    report = {
        "run": run_section(out, material.plan),
        "scale": scale,
        "data": data_section(material, read_json(out / "restore" / RUN).get("start")),
        "degradation": degradation_section(material, dataclasses.asdict(mixture), seed),
        "curves": curves_section(out, material.plan),
        "scores": scores,
        "acceptance": accepted[MODEL],
        "variant": accepted.get(VARIANT),
        "consistency": promised,
        "start": read_json(out / "restore" / RUN).get("start"),
    }
    return report, scored


def data_section(material: Material, start: dict[str, Any] | None) -> dict[str, Any]:
    """Counts, warnings and refusals by reason: no file name."""
    audit = material.audit
    held = {image.sha256 for image in audit.high if image.split == "test"}
    return {
        "high": sets_section("high", audit.high, audit.high_sets, material.terms),
        "low": sets_section("low", audit.low, audit.low_sets, material.terms),
        "images": {"high": len(audit.high), "low": len(audit.low)},
        "warnings": [*audit.warnings, *seen_before(held, start, "high-resolution")],
        "refused": refusals(audit.refused),
    }


def sets_section(
    side: str, images: tuple[AuditedImage, ...], sets: dict[str, PictureSet], terms: dict[str, str]
) -> dict[str, Any]:
    """What the page tells of every set of one side."""
    found = {}
    for name, record in sets.items():
        members = [image for image in images if image.set == name]
        splits = Counter(image.split for image in members)
        facts = {"train": splits["train"], "test": splits["test"], "groups": len({image.group for image in members})}
        found[name] = dataclasses.asdict(record) | facts | {"terms": terms[f"{side} {name}"]}
    return found


def degradation_section(material: Material, mixture: dict[str, Any], seed: int) -> dict[str, Any]:
    """What makes images small in training: shares, what was measured of the noise, and of the learned draws."""
    people = material.population
    laws = [people.draw(sample_generator(seed + 50_000_000, 0, i)) for i in range(DRAWS)] if people else []
    total = mixture["bicubic"] + mixture["blind"] + mixture["pdm"]
    return {
        "shares": {name: mixture[name] / total for name in ("bicubic", "blind", "pdm")},
        "noise_sets": len(people.sets) if people else 0,
        "drawn": [255 * float(np.sqrt(max(0.5 * law.slope + law.offset, 0.0))) for law in laws],
        "drawn_lag1": [correlations(law.kernel)[:2] for law in laws],
        "facts": material.learned.facts if material.learned else {},
    }


def draws(out: Path, material: Material, seed: int) -> str:
    """The figure of the learned degradation's draws, which shows images; empty where none was learned."""
    if material.learned is None:
        return ""
    from training.degradation.figure import draws_figure

    high, low = (
        [read_plane(out, image.file) for image in spread(of_split(images, "train"), SHOWN)]
        for images in (material.audit.high, material.audit.low)
    )
    return draws_figure(material.learned, high, low, seed)


def figures(report: dict[str, Any], degradation: str = "") -> dict[str, Any]:
    """Every plot, as markup; that of the learned degradation is given."""
    from training.report import figure

    noise = report["degradation"]
    return marked_up(
        {
            "training": {
                stage: figure.grouped_curves(stage, grouped(report["curves"][stage]))
                for stage in TRAINED
                if stage in report["curves"]
            },
            "noise": figure.population({}, noise["drawn"], {}, noise["drawn_lag1"]) if noise["drawn"] else "",
            "scores": figure.method_gains(report["scores"]) if report["scores"] else "",
            "degradation": degradation,
        }
    )


TERMS = "terms of the loss, weighted"
GROUPS = (  # of quantities that share a plot, by how their name begins; the first that fits
    ("gradient_", "gradient norms on the generator"),
    ("psnr", "held-back images: PSNR, dB"),
    ("bicubic", "held-back images: PSNR, dB"),
    ("ssim_", "held-back images: SSIM"),
    ("real_accuracy", "discriminator: right decisions"),
    ("fake_accuracy", "discriminator: right decisions"),
    ("critic_loss", "losses"),
    ("generator_loss", "losses"),
    ("loss", "loss"),
)


def grouped(curves: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Title of a plot -> label -> rows [step, value]; what no group claims is a term of the loss."""
    found: dict[str, dict[str, Any]] = {}
    for quantity, logs in curves.items():
        begin = quantity if f"gradient_{quantity}" in curves else f"{quantity}_"  # a term may be called as a score is
        title = next((title for start, title in GROUPS if begin.startswith(start)), TERMS)
        label = quantity.removeprefix("gradient_")
        for log, rows in logs.items():
            found.setdefault(title, {})[label if len(logs) == 1 else f"{log}, {label}"] = rows
    return found


def panels(
    out: Path, material: Material, scored: list[Scored], config: ReportConfig
) -> dict[str, list[dict[str, Any]]]:
    """Of every high-resolution set held-back images made small and enlarged, of every low one as they came."""
    kind = DRAWN if any(one.case.degradation == DRAWN for one in scored) else BICUBIC
    found: dict[str, list[dict[str, Any]]] = {}
    for case in (one.case for one in scored if one.case.degradation == kind):
        members = found.setdefault(f"{case.image.set}, reduced ({kind})", [])
        if len(members) < config.panels:
            shown = {"original": case.high, **methods(material, case.low)}
            members.append({"id": case.image.name, "split": "held back", "images": pictures(shown, config.panel_side)})
    for name in material.audit.low_sets:
        images = [image for image in material.audit.low if image.set == name]
        test = [image for image in images if image.split == "test"]
        for image in spread(test or images, config.panels):
            low = middle(read_plane(out, image.file), config.panel_side // material.scale)
            made = pictures(methods(material, low), config.panel_side)
            found.setdefault(f"{name}, low-resolution images as they came", []).append(
                {"id": image.id, "split": "held back" if test else "used in training", "images": made}
            )
    return found


def methods(material: Material, low: Plane) -> dict[str, Plane]:
    """A low-resolution image, and what every method makes of it, all of one size."""
    made = {"low resolution": enlarged(low, material.scale), "bicubic": bicubic(material.scale, low)}
    return made | {name: model(low) for name, model in material.models.items()}


def pictures(planes: dict[str, Plane], side: int) -> dict[str, str]:
    """Data URIs of planes of one size, all with the window of the first."""
    from training.report.picture import png, window

    cut = {title: middle(plane, side) for title, plane in planes.items()}
    low, high = window(next(iter(cut.values())))
    return {title: png(plane, low, high) for title, plane in cut.items()}
