"""What the reports of all kinds of run share: where they lie, what they tell of a run, and how a page is written."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.pipeline.plan import DENOISER, Plan
from training.pipeline.record import PIPELINE, Refusal, read_json
from training.pipeline.stage import DONE, public_config
from training.start import trained_on

JSON, HTML, NAMES = "report.json", "report.html", "sets.json"
PUBLIC = Path("public", HTML)  # without pictures: as a bundle carries it, which may leave the hospital
CURVE_POINTS = 300  # of each training curve, spread evenly
SAME = r"the same file as .*"


def numbered(modalities: Mapping[str, str], keep: bool = False) -> dict[str, str]:
    """What sets, of which the modality is given, are called in a report: "CT 1", "MR 1", ...; as they are with `keep`.

    Folders, which sets are called after, may name a patient.
    """
    numbers: Counter[str] = Counter()
    names = {}
    for name in sorted(modalities):
        numbers[modality := modalities[name]] += 1
        names[name] = name if keep else f"{modality} {numbers[modality]}"
    return names


def refusals(refused: Iterable[Refusal]) -> list[dict[str, Any]]:
    """Files that were left out, by reason: no file is named."""
    reasons = Counter(re.sub(SAME, "the same file as another", refusal.reason) for refusal in refused)
    return [{"reason": reason, "files": files} for reason, files in sorted(reasons.items())]


def seen_before(held_back: set[str], start: dict[str, Any] | None, kind: str) -> list[str]:
    """A line where images held back here (SHA-256) were trained on before: their scores say little of new images."""
    if not (known := held_back & trained_on(start)) or not start:
        return []
    return [f"{len(known)} of {len(held_back)} held-back {kind} images had a part in the training of {start['bundle']}"]


def finite(value: Any) -> Any:
    """The same document, six digits of each number, and None in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def run_section(out: Path, plan: Plan = DENOISER) -> dict[str, Any]:
    """What made the run; folders of the hospital are left out."""
    record = read_json(out / PIPELINE) if (out / PIPELINE).exists() else {}
    stages = {}
    for stage in plan.stages:
        if (path := out / stage / DONE).exists() and stage != "report":
            stages[stage] = {key: value for key, value in read_json(path).items() if key != "fingerprint"}
    kept = {key: record.get(key, "unknown") for key in ("preset", "seed", "commit")}
    return {**kept, "config": public_config(record.get("config", {}), plan), "stages": stages}


def curves_section(out: Path, plan: Plan = DENOISER) -> dict[str, Any]:
    """Training curves, thinned out: stage -> quantity -> log -> [[step, value], ...]."""
    found: dict[str, Any] = {}
    for stage in plan.stages:
        paths = sorted((out / stage).rglob("log.csv"))
        for path in [p for p in paths if p.parent != out / stage] or paths:
            name = path.parent.relative_to(out / stage).as_posix()
            with path.open(newline="") as stream:
                for row in csv.DictReader(stream):
                    if row["key"] != "seconds":
                        quantity = found.setdefault(stage, {}).setdefault(row["key"], {})
                        quantity.setdefault(name, []).append([int(row["step"]), float(row["value"])])
    for stage in found.values():
        for quantity in stage.values():
            for label, rows in quantity.items():
                kept = np.unique(np.linspace(0, len(rows) - 1, CURVE_POINTS).round().astype(int))
                quantity[label] = [rows[i] for i in kept]
    return found


def write_page(path: Path, template: str, **content: Any) -> None:
    """One file that needs nothing else: styles, plots and pictures lie in it. `template`: a file beside this one."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**content)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def marked_up(found: dict[str, Any]) -> dict[str, Any]:
    """Plots, by name or by name and label, as markup that a page takes as it is."""
    from markupsafe import Markup

    return {
        key: {k: Markup(v) for k, v in value.items()} if isinstance(value, dict) else Markup(value)
        for key, value in found.items()
    }


def read_report(out: Path) -> dict[str, Any]:
    """`report/report.json` of a run. Raises ValueError where there is none."""
    path = out / "report" / JSON
    if not path.exists():
        raise ValueError(f"{out} has no report; run the stage report first")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report
