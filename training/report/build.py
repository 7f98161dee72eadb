"""Stage 4: measures what a run achieved and writes `report/report.json` and `report/report.html`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.crop import middle
from training.data.noise import Population, correlations
from training.noise.population import read_population
from training.pipeline.record import Audit, NoiseRow, read_audit, read_json, read_table, write_json
from training.report.acceptance import accept
from training.report.config import ReportConfig
from training.report.measure import Restored, measure_set, restore_set, shown_images
from training.report.model import RunModel
from training.report.page import (
    HTML,
    JSON,
    NAMES,
    PUBLIC,
    SAME,
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
from training.train import RUN

__all__ = ["HTML", "JSON", "NAMES", "PUBLIC", "RunModel", "read_report", "run"]

POPULATION = Path("synthesis", "population.json")
SYNTHESIS = Path("synthesis", "synthesis.json")
DRAWN = 400  # laws shown of the learned population


def run(out: Path, config: ReportConfig, *, seed: int) -> None:
    """Measures and writes both files. Raises FileNotFoundError where a stage before has not been run."""
    report, restored = measure(out, config, seed)
    write_json(out / "report" / JSON, report)
    written = read_report(out)
    write_html(out / "report" / HTML, written, panels(restored, config))
    write_html(out / "report" / PUBLIC, written, {})


def measure(out: Path, config: ReportConfig, seed: int) -> tuple[dict[str, Any], dict[str, list[Restored]]]:
    """All numbers of the report, and the restored images of every set."""
    audit, table, names = nameless(read_audit(out), read_table(out), config.name_sets)
    write_json(out / "report" / NAMES, names)  # stays in the run's folder
    population = read_population(out / POPULATION)
    model = RunModel(out / "profound")
    restored = {
        name: restore_set(out, shown_images(audit, name, config.images), 2 * config.side, model) for name in audit.sets
    }
    sets = {name: measure_set(images, audit.sets[name].rician) for name, images in restored.items() if images}
    report = {
        "run": run_section(out),
        "data": data_section(audit, read_json(out / "profound" / RUN).get("start")),
        "noise": noise_section(table),
        "population": population_section(population, table, seed),
        "synthesis": synthesis_section(out, names),
        "curves": curves_section(out),
        "sets": sets,
        "acceptance": accept(out, audit, sets, model, population, config),
    }
    return finite(report), restored


def synthesis_section(out: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """Stage 2's own report, its sets called as `names` (new name -> name in the audit) has them."""
    report: dict[str, Any] = read_json(out / SYNTHESIS)
    return report | {"sets": {new: report["sets"][old] for new, old in names.items() if old in report["sets"]}}


def nameless(
    audit: Audit, table: Sequence[NoiseRow], name_sets: bool = False
) -> tuple[Audit, list[NoiseRow], dict[str, str]]:
    """The same with sets called "CT 1", "MR 1", ..., and what each was called before.

    Folders, which sets are called after, may name a patient; so may the reason why a file was refused.
    """
    names = numbered({name: record.modality for name, record in audit.sets.items()}, name_sets)

    def plain(text: str) -> str:
        name, colon, rest = text.partition(": ")
        return f"{names[name]}{colon}{rest}" if name in names else text

    renamed = dataclasses.replace(
        audit,
        images=tuple(dataclasses.replace(image, set=names[image.set]) for image in audit.images),
        sets={
            names[name]: record for name, record in audit.sets.items()
        },
        refused=tuple(dataclasses.replace(r, reason=re.sub(SAME, "the same file as another", r.reason))
                      for r in audit.refused),
        warnings=tuple(map(plain, audit.warnings)),
    )  # fmt: skip
    return renamed, [dataclasses.replace(row, set=names[row.set]) for row in table], {v: k for k, v in names.items()}


def data_section(audit: Audit, start: dict[str, Any] | None) -> dict[str, Any]:
    """Counts, warnings and refusals by reason: no file name. `start`: the bundle that stage 3 went on from."""
    sets = {}
    for name, record in audit.sets.items():
        images = [image for image in audit.images if image.set == name]
        splits = Counter(image.split for image in images)
        sets[name] = {
            "modality": record.modality,
            "images": len(images),
            "train": splits["train"],
            "test": splits["test"],
            "groups": len({image.group for image in images}),
            "low": record.low,
            "high": record.high,
            "stride": record.stride,
            "rician": record.rician,
            "lag1": list(record.lag1),
            "correlation": record.correlation,
            "warnings": list(record.warnings),
        }
    return {
        "noisy": len(audit.images),
        "clean": len(audit.clean),
        "clean_train": sum(image.split == "train" for image in audit.clean),
        "clean_test": sum(image.split == "test" for image in audit.clean),
        "sets": sets,
        "warnings": [*audit.warnings, *start_warnings(audit, start)],
        "refused": refusals(audit.refused),
    }


def start_warnings(audit: Audit, start: dict[str, Any] | None) -> list[str]:
    """A line where clean images held back here were trained on before: their scores say little of new images."""
    return seen_before({image.sha256 for image in audit.clean if image.split == "test"}, start, "clean")


def noise_section(table: Sequence[NoiseRow]) -> dict[str, Any]:
    """Summary of stage 1's noise table, by set."""
    found: dict[str, list[NoiseRow]] = {}
    for row in table:
        found.setdefault(row.set, []).append(row)
    return {
        name: {
            "images": len(rows),
            "level": [float(v) for v in np.percentile([row.level for row in rows], [10, 50, 90])],
            "laws": [[row.a, row.b] for row in rows],
            **{key: float(np.median([getattr(row, key) for row in rows])) for key in ("a", "b", "fit_residual")},
            "share_flat": float(np.median([row.share_flat for row in rows])),
            "bias_corrected": float(np.mean([row.bias_corrected for row in rows])),
        }
        for name, rows in found.items()
    }


def population_section(population: Population, table: Sequence[NoiseRow], seed: int) -> dict[str, Any]:
    """Levels at mid-grey in 255ths and lag-1 correlations: drawn from the population, and observed."""
    laws = [population.draw(sample_generator(seed + 50_000_000, 0, i)) for i in range(DRAWN)]
    observed: dict[str, list[float]] = {}
    for row in table:
        observed.setdefault(row.set, []).append(255 * math.sqrt(max(0.5 * row.a + row.b, 0.0)))
    return {
        "drawn": [255 * math.sqrt(max(0.5 * law.slope + law.offset, 0.0)) for law in laws],
        "drawn_lag1": [correlations(law.kernel)[:2] for law in laws],
        "rician_share": float(np.mean([law.rician for law in laws])),
        "observed": observed,
    }


def write_html(path: Path, report: dict[str, Any], panels: dict[str, list[dict[str, Any]]]) -> None:
    """The report's page, with those panels."""
    write_page(path, "template.html", report=report, figures=figures(report), panels=panels)


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Every plot, as markup."""
    from training.report import figure

    sets, noise, people = report["sets"], report["noise"], report["population"]
    data = report["data"]["sets"]
    lags = {name: record["lag1"] for name, record in data.items()}
    maps = {
        name: figure.correlation_maps(
            name, {"noise": data[name]["correlation"], **{k: row["correlation"][k] for k in ("removed", "left")}}
        )
        for name, row in sets.items()
    }
    found = {
        "level": {name: figure.level_function(name, row["level_points"], noise.get(name, {}).get("laws", []))
                  for name, row in sets.items()},
        "spectra": figure.power_spectra({name: record["correlation"] for name, record in data.items()}),
        "population": figure.population(people["observed"], people["drawn"], lags, people["drawn_lag1"]),
        "training": {stage: figure.training_curves(curves) for stage, curves in report["curves"].items()},
        "correlation": maps,
        "gains": figure.gains(report["acceptance"]["scores"]) if report["acceptance"]["scores"] else "",
    }  # fmt: skip
    return marked_up(found)


def panels(restored: dict[str, list[Restored]], config: ReportConfig) -> dict[str, list[dict[str, Any]]]:
    """The pictures of every set: as they came, after stage 1, restored, and what was removed."""
    from training.report.picture import png, residual_window, window

    found: dict[str, list[dict[str, Any]]] = {}
    for name, images in restored.items():
        for image in images[: config.panels]:
            planes = {"before": image.noisy, "after stage 1": image.preliminary, "after": image.restored}
            shown = {title: middle(plane, config.panel_side) for title, plane in planes.items() if plane is not None}
            low, high = window(shown["before"])
            pictures = {title: png(plane, low, high) for title, plane in shown.items()}
            residual = shown["before"] - shown["after"]
            pictures["removed, amplified"] = png(residual, *residual_window(residual))
            split = "held back" if image.record.split == "test" else "used in training"
            found.setdefault(name, []).append({"id": image.record.id, "split": split, "images": pictures})
    return found
