"""What a stage of a run is made from, and whether it is done.

A stage's `stage.json` is written last and by a rename, so a stage that has one is whole. It holds the
fingerprint of the stage: its configuration, its seed and the hashes of everything it read. A stage with an equal
fingerprint is never run again, one with another fingerprint is never run on top of. `run(out, config, ...)`
of a stage need not know of this: `training.pipeline.command` calls `begin` before and `finish` after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import sha256_of
from training.checkpoint import NAME as CHECKPOINT
from training.pipeline.plan import DENOISER, Plan
from training.pipeline.record import read_json, write_json
from training.train import commit

STAGES, INPUTS = DENOISER.stages, DENOISER.inputs
DONE, STARTED = "stage.json", "started.json"
SHOWN = 8  # differences named in a refusal


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides what a stage makes."""

    config: dict[str, Any]
    seed: int
    inputs: dict[str, str]  # name of a file or folder -> SHA-256 of its content

    @property
    def digest(self) -> str:
        """SHA-256 of the whole, hexadecimal."""
        return digest_of(dataclasses.asdict(self))

    def differences(self, other: Fingerprint) -> list[str]:
        """One line for each thing that differs: `steps: 100, not 200` (self's value first)."""
        mine, theirs = (dict(flatten({"seed": f.seed, **f.config})) for f in (self, other))
        lines = [
            f"{key}: {mine.get(key, 'absent')}, not {theirs.get(key, 'absent')}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]
        names = self.inputs.keys() | other.inputs.keys()
        return lines + [f"{n} has changed" for n in sorted(names) if self.inputs.get(n) != other.inputs.get(n)]


def public_config(config: dict[str, Any], plan: Plan = DENOISER) -> dict[str, Any]:
    """A run's configuration as it may leave the hospital: what could name a folder is its hash."""
    for section, keys in plan.private.items():
        for key in keys:
            config = hidden(config, [section, *key.split(".")])
    return config


def hidden(table: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The same with a hash in place of what lies under these keys, one inside the other, if anything does."""
    first, *rest = keys
    value = table.get(first)
    if not value or (rest and not isinstance(value, dict)):
        return table
    return table | {first: hidden(value, rest) if rest else f"sha256:{digest_of(value)}"}


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, plain value) for everything in nested tables and lists."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from flatten(inner, f"{key}[{i}]")
    else:
        yield key, value


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files in a folder and below; hidden ones are left out."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = sorted(n.as_posix() for n in names if not any(part.startswith(".") for part in n.parts))
    return digest_of([(name, sha256_of(folder / name)) for name in shown])


def content_digest(path: Path) -> str:
    """SHA-256 of a file or a folder; "absent" where there is neither."""
    if path.is_dir():
        return folder_digest(path)
    return sha256_of(path) if path.is_file() else "absent"


def fingerprint(
    out: Path, stage: str, config: Any, seed: int, more: dict[str, str] | None = None, plan: Plan = DENOISER
) -> Fingerprint:
    """The fingerprint that a stage has now; `more` are the hashes of what it reads outside the run's folder."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # as it will be read back: tuples are lists
    inputs = {name: content_digest(out / name) for name in plan.inputs[stage]}
    return Fingerprint(plain, seed, inputs | (more or {}))


def recorded(out: Path, stage: str) -> Fingerprint | None:
    """The fingerprint of the stage as it was done, or else begun; None where it was neither."""
    for name in (DONE, STARTED):
        if (path := out / stage / name).exists():
            raw = read_json(path)["fingerprint"]
            return Fingerprint(raw["config"], raw["seed"], raw["inputs"])
    return None


def done(out: Path, stage: str, digest: str) -> bool:
    """Whether the stage was finished with that digest."""
    path = out / stage / DONE
    return path.exists() and read_json(path)["digest"] == digest


def require(out: Path, stages: Iterable[str]) -> None:
    """Raises ValueError naming the first of these stages that is not finished."""
    for stage in stages:
        if not (out / stage / DONE).exists():
            raise ValueError(f"stage {stage} is not done yet; run it first, or leave --stage out")


def worth_keeping(out: Path, stage: str) -> bool:
    """Whether a stage has made more than can be made again in minutes: it is done, or has learned something."""
    return (out / stage / DONE).exists() or any((out / stage).rglob(CHECKPOINT))


def check(out: Path, stage: str, wanted: Fingerprint) -> None:
    """Raises ValueError where what the stage has made was made from anything else than what is wanted now."""
    before = recorded(out, stage)
    if before and before.digest != wanted.digest and worth_keeping(out, stage):
        lines = wanted.differences(before)
        more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise ValueError(
            f"stage {stage} was made from something else ({'; '.join(lines[:SHOWN])}{more}); "
            "use another --out, or --redo to delete what the stage made and make it anew"
        )


def begin(out: Path, stage: str, wanted: Fingerprint) -> None:
    """Notes what the stage is made from, before it writes anything else. Raises as `check` does."""
    check(out, stage, wanted)
    if recorded(out, stage) != wanted:
        discard(out, stage)
    write_json(out / stage / STARTED, {"fingerprint": dataclasses.asdict(wanted)})


def finish(out: Path, stage: str, wanted: Fingerprint, record: dict[str, Any]) -> None:
    """Marks the stage as done; `record` says by what code, on what machine, in how many seconds."""
    document = {"stage": stage, "digest": wanted.digest, "fingerprint": dataclasses.asdict(wanted), **record}
    write_json(out / stage / DONE, document)


def discard(out: Path, stage: str) -> None:
    """Deletes what a stage made; it is moved aside first, so that a kill leaves no half stage that looks whole."""
    aside = out / f".discarded-{stage}"
    shutil.rmtree(aside, ignore_errors=True)
    if (out / stage).exists():
        (out / stage).rename(aside)
        shutil.rmtree(aside)


def provenance() -> dict[str, Any]:
    """Revision of the code, and versions of what decides the numbers."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"commit": commit(), "versions": versions}
