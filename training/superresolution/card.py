"""The model card of a published super-resolver: what it is, what for, of what it was made, and how far to trust it.

After Mitchell et al., "Model Cards for Model Reporting" (2019). It names no file, folder or person.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config import TrainConfig, recorded_config
from training.evaluation.table import markdown
from training.pipeline.record import read_json
from training.report.page import read_report
from training.superresolution.score import BICUBIC, DRAWN
from training.train import RUN

HALLUCINATION = (
    "**This network was trained against a discriminator. It draws texture that looks real and may not be there.** It is"
    " never what a service answers with unless it is asked for by its name, and what it made says so. Do not"
    " measure, compare or diagnose on its images."
)
PLAIN = (
    "It was trained without a discriminator, for the least error: where the image does not tell, it stays smooth rather"
    " than invent. Even so, detail near the limit of resolution is an estimate."
)
Report = Mapping[str, Any]


def write_card(path: Path, run: Path, part: str, name: str, version: str, licence: str) -> Path:
    """Writes the card of the network in `run/part` ("restore" or "adversarial"), published as name@version."""
    report, record = read_report(run), read_json(run / part / RUN)
    variant = part == "adversarial"
    method, scale = ("adversarial" if variant else "model"), report["scale"]
    sections = {
        "What it is": what(recorded_config(record), scale, variant),
        "Intended use": intended(variant),
        "Training data": [*data(report), degradation(report)],
        "Figures": figures(report, method),
        "Limits": limits(report, method),
        "Terms": [f"Weights: {licence}."],
        "Provenance": provenance(report, record, part),
    }
    lines = [f"# {name}@{version}", "", record["config"]["summary"] + ".", ""]
    for title, paragraphs in sections.items():
        lines += [f"## {title}", "", *(line for paragraph in paragraphs for line in (paragraph, ""))]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def what(config: TrainConfig, scale: int, variant: bool) -> list[str]:
    """Architecture and kind."""
    options = ", ".join(f"{key} {value}" for key, value in sorted(config.restore.options.items()) if key != "scale")
    network = f"{config.restore.network} ({options})" if options else config.restore.network
    return [
        f"A super-resolver of single images, x{scale}: one channel on the unit scale in, {scale} times the rows and"
        f" columns out, on the same grid by pixel area. Network: {network}, on top of bicubic interpolation. Colour is"
        " enlarged plane by plane.",
        HALLUCINATION if variant else PLAIN,
    ]


def intended(variant: bool) -> list[str]:
    """For what, and not for what."""
    purpose = "looking at images in presentations and in research on perception" if variant else (
        "looking at images at a larger size, and research"
    )  # fmt: skip
    return [
        f"For {purpose}. Keep the originals beside the results.",
        "Not for diagnosis, treatment or any other clinical decision; not for measuring sizes near the limit of"
        " resolution; not for images of another kind than those named below. It is no medical device.",
    ]


def data(report: Report) -> list[str]:
    """Kinds and numbers of images, with their terms where those were given."""
    lines = []
    for title, sets in (("High resolution", report["data"]["high"]), ("Low resolution", report["data"]["low"])):
        kinds: dict[tuple[str, str], list[int]] = {}
        for one in sets.values():
            kind = "photographs" if one["photographs"] else f"modality {one['modality']}"
            counts = kinds.setdefault((kind, one["terms"] or "terms not recorded"), [0, 0])
            counts[0] += one["train"]
            counts[1] += one["test"]
        if kinds:
            items = [f"- {kind}: {train} for training, {test} held back; {terms}"
                     for (kind, terms), (train, test) in kinds.items()]  # fmt: skip
            lines.append("\n".join([f"{title}, by kind and licence:", "", *items]))
    return lines


def degradation(report: Report) -> str:
    """What made the low-resolution half of the pairs."""
    found, text = report["degradation"], []
    names = {
        "bicubic": "bicubic reduction",
        "blind": "blur, reduction and noise drawn by hand-made rules",
        "pdm": "a degradation learned from the low-resolution images, which match no high-resolution one",
    }
    for kind, share in found["shares"].items():
        if share:
            text.append(f"{share:.0%} {names[kind]}")
    sentence = f"High-resolution images were made small by: {'; '.join(text)}."
    if found["shares"]["blind"] and found["noise_sets"]:
        sentence += f" The noise was that measured in {found['noise_sets']} sets of low-resolution images."
    facts = {key: value for key, value in found["facts"].items() if isinstance(value, int | float)}
    told = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in facts.items())
    return f"{sentence} Of the learned one: {told}." if told else sentence


def figures(report: Report, method: str) -> list[str]:
    """Scores beside interpolation, and the acceptance table."""
    acceptance = report["acceptance"] if method == "model" else report["variant"]
    rows = [
        {
            "set": row["set"],
            "reduced by": {BICUBIC: "bicubic", DRAWN: "a draw"}[row["degradation"]],
            "method": row["method"],
            "images": row["images"],
            "PSNR": row["psnr"],
            "SSIM": row["ssim"],
            "smallest gain": row["smallest_gain"],
            "consistency": row["consistency"],
        }
        for row in report["scores"]
        if row["method"] in ("bicubic", "Lanczos", method)
    ]
    verdict = "passed" if acceptance["passed"] else "not passed"
    checks = [f"- {row['verdict']}: {row['check']}: {row['asked']}; {row['found'] or row['note']}"
              for row in acceptance["rows"]]  # fmt: skip
    shown = [
        "On images that were held back, in dB where it applies; gains are over bicubic interpolation. `report.html` has"
        " more.",
        markdown(rows).strip(),
    ]
    none = ["No high-resolution image was held back, so there are no scores."]
    return [*(shown if rows else none), f"Acceptance, {verdict}:\n\n" + "\n".join(checks)]


def limits(report: Report, method: str) -> list[str]:
    """Where it must be expected to fail."""
    lines = ["Of images with another blur, noise or compression than it was taught, it may sharpen the fault."]
    promised = report["consistency"][method]
    if promised is not None:
        lines.append(
            f"A result that, reduced again, agrees with its input worse than by {promised:g} dB (peak: the input's own"
            " range) is worse than any of the held-back images that were scored: look at it with suspicion."
        )
    warnings = [*report["data"]["warnings"], *set_warnings(report["data"]["high"])]
    return lines + (["\n".join(f"- {warning}" for warning in dict.fromkeys(warnings))] if warnings else [])


def set_warnings(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name}: {warning}" for name, one in sets.items() for warning in one["warnings"]]


def provenance(report: Report, record: Mapping[str, Any], part: str) -> list[str]:
    """Where the weights come from."""
    run, fit, start = report["run"], record["config"]["restore"], record.get("start")
    seconds = sum(stage["seconds"] for stage in run["stages"].values())
    begun = f"went on from {start['bundle']} ({start['digest'][:12]})" if start else "from scratch"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    if keep := run["config"]["restore"].get("keep"):
        begun += f", {keep:.0%} of whose weights the result keeps"
    if part == "adversarial":
        duel = run["config"]["adversarial"]["fit"]
        begun += f"; then {duel['steps']} steps of {duel['batch']} against the discriminator"
    return [
        f"Preset {run['preset']}, seed {run['seed']}, code {run['commit'][:12]}; {fit['steps']} steps of"
        f" {fit['batch']} crops, {begun}; {seconds:.0f} s in all stages on {record['device']}; {versions}. The manifest"
        " holds configuration, fingerprints and the SHA-256 of every training image."
    ]
