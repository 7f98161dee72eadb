"""`medrestore pipeline status OUT`: one line per stage, of either kind of run."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.pipeline.record import PIPELINE, read_json
from training.pipeline.sequence import busy, duration
from training.pipeline.stage import DONE, STARTED
from training.superresolution.plan import plan_of


def show_status(out: Path) -> int:
    """Prints the state of every stage; returns the exit status, 0 where all are done. Raises ValueError."""
    if not (out / PIPELINE).exists():
        raise ValueError(f"{out} holds no pipeline run")
    record = read_json(out / PIPELINE)
    print(f"{out}: preset {record['preset']}, seed {record['seed']}, {'at work' if busy(out) else 'not running'}")
    stages = plan_of(record).stages
    for number, stage in enumerate(stages, 1):
        print(f"[{number}/{len(stages)}] {stage:12} {state(out, stage, record['config'])}")
    return 0 if all((out / stage / DONE).exists() for stage in stages) else 1


def state(out: Path, stage: str, config: dict[str, Any]) -> str:
    """What is to be said about one stage."""
    if (out / stage / DONE).exists():
        return f"done in {duration(read_json(out / stage / DONE)['seconds'])}"
    if not (out / stage / STARTED).exists():
        return "waiting"
    return "; ".join(["begun", *progress(out / stage, config.get(stage, {}))])


def progress(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """`restore: step 200 of 1000, 12 min left` for every training log below a stage's folder."""
    for path in sorted(folder.rglob("log.csv"), key=lambda p: p.stat().st_mtime):
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        seconds = [row for row in rows if row["key"] == "seconds"]
        total = steps_of(config, path.parent.name)
        if not seconds or not total:
            continue
        step, spent = int(seconds[-1]["step"]), float(seconds[-1]["value"])
        left = f", {duration(spent / step * (total - step))} left" if step < total else ""
        yield f"{path.parent.name}: step {step} of {total}{left}"


def steps_of(config: dict[str, Any], name: str) -> int | None:
    """How many steps a stage's configuration wants of a fit; where it has but one, that need not be named."""
    parts = (config.get(name), config.get("fit"), config.get("learned", {}).get("fit"))
    return next((part["steps"] for part in parts if isinstance(part, dict) and "steps" in part), None)
