"""The bundles that a finished run makes: the super-resolver and, if it was trained, its adversarial variant."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from models.bundle import ADVERSARIAL
from training.pipeline.record import PIPELINE, AuditedImage, read_json
from training.pipeline.stage import DONE, public_config
from training.publish import Edition
from training.report.page import JSON, PUBLIC, read_report
from training.superresolution.card import write_card
from training.superresolution.plan import plan_of
from training.superresolution.record import of_split, read_pictures
from training.train import RUN

PARTS = {"restore": "", "adversarial": ADVERSARIAL}


def editions(run: Path, name: str | None, licence: str) -> list[Edition]:
    """What there is to publish, by the run's own names or those that begin with `name`."""
    report, plan = read_report(run), plan_of(read_json(run / PIPELINE))
    found = []
    for part, ending in PARTS.items():
        if part not in plan.stages:
            continue
        method = "model" if part == "restore" else part
        scores = {"acceptance": report["acceptance"] if part == "restore" else report["variant"]}
        record = read_json(run / part / RUN)
        own = record["config"]["name"]
        found.append(
            Edition(
                name=name + ending if name else own,
                run=run / part,
                scores=scores | {"held_back": [row for row in report["scores"] if row["method"] == method]},
                provenance=provenance(run, part),
                attached=(run / "report" / PUBLIC, run / "report" / JSON),
                licence=licence,
                consistency=report["consistency"][method],
                card=partial(write_card, run=run, part=part),
            )
        )
    return found


def provenance(run: Path, part: str) -> dict[str, Any]:
    """What the bundle was made from: configuration, seed, code, and hashes; no file or folder is named."""
    record, audit, trained = read_json(run / PIPELINE), read_pictures(run), read_json(run / part / RUN)
    plan = plan_of(record)
    marks = {stage: read_json(run / stage / DONE) for stage in plan.stages}
    read = marks["audit"]["fingerprint"]["inputs"] | marks["degradation"]["fingerprint"]["inputs"]
    return {
        "pipeline": {
            **{key: record[key] for key in ("preset", "seed", "commit", "task")},
            "config": public_config(record["config"], plan),
        },
        "start": trained.get("start"),
        "seconds": trained["seconds"],
        "stages": {
            stage: {key: mark[key] for key in ("digest", "commit", "versions", "seconds", "processes")}
            for stage, mark in marks.items()
        },
        "data": {
            "hr": {"folder_sha256": read["hr"], "sha256": trained_on(audit.high)},
            "lr": {"folder_sha256": read.get("lr"), "sha256": trained_on(audit.low)},
            "noise": read.get("noise"),
        },
    }


def trained_on(images: tuple[AuditedImage, ...]) -> list[str]:
    """SHA-256 of the files of the training split."""
    return sorted({image.sha256 for image in of_split(images, "train")})
