"""The order of the stages: each is skipped where it is done, and refused where it would build on something else."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.machine import Machine
from training.pipeline.config import PipelineConfig
from training.pipeline.stage import (
    DONE,
    STAGES,
    Fingerprint,
    begin,
    check,
    discard,
    done,
    fingerprint,
    finish,
    folder_digest,
    provenance,
    recorded,
    require,
)
from training.pipeline.team import Team

LOCK = ".lock"
TOGETHER = ("preliminary", "profound")  # these train, with all processes; the others are the first one's


@dataclass(frozen=True)
class Folders:
    """Where the images of a run lie."""

    noisy: Path | None
    clean: Path | None

    def digests(self, out: Path) -> dict[str, str]:
        """The hashes of both; those on record where the audit is done and the originals are out of reach."""
        before = recorded(out, "audit")
        found = {}
        for name, folder in (("noisy", self.noisy), ("clean", self.clean)):
            if folder is not None and folder.is_dir():
                found[name] = folder_digest(folder)
            elif before and (out / "audit" / DONE).exists():
                found[name] = before.inputs[name]
            elif folder is None:
                raise ValueError(f"--{name} is missing: the folder of {name} images")
            else:
                raise ValueError(f"--{name} {folder} is no folder")
        return found


@dataclass(frozen=True)
class Job:
    """One call of `medrestore pipeline run`."""

    out: Path
    folders: Folders
    config: PipelineConfig
    machine: Machine
    only: str | None = None
    redo: bool = False

    def fingerprint(self, stage: str) -> Fingerprint:
        """What the stage would be made from now."""
        more = self.folders.digests(self.out) if stage == "audit" else None
        return fingerprint(self.out, stage, getattr(self.config, stage), self.config.seed, more)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the run's folder; raises ValueError where another process works in it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out} is in use by another run") from None
        yield


def busy(out: Path) -> bool:
    """Whether a process works in the run's folder now."""
    try:
        with locked(out):
            return False
    except ValueError:
        return True


def duration(seconds: float) -> str:
    """As a person says it: "45 s", "12 min", "3 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def refuse_other_configurations(job: Job) -> None:
    """Raises ValueError, before anything is computed, where a stage was made with other settings."""
    for stage in [job.only] if job.only else STAGES:
        before = recorded(job.out, stage)
        if before and not job.redo:
            wanted = fingerprint(job.out, stage, getattr(job.config, stage), job.config.seed)
            check(job.out, stage, Fingerprint(wanted.config, wanted.seed, before.inputs))


def prepare(job: Job, stage: str) -> Fingerprint | None:
    """Makes room for a stage; None where it is done already."""
    require(job.out, STAGES[: STAGES.index(stage)])
    wanted = job.fingerprint(stage)
    if done(job.out, stage, wanted.digest) and not (job.redo and job.only):
        return None
    if job.redo and (job.only or recorded(job.out, stage) != wanted):
        discard(job.out, stage)
    begin(job.out, stage, wanted)
    return wanted


def run_all(job: Job, team: Team, runners: dict[str, Callable[[Job], None]], say: Callable[[str], None]) -> None:
    """Runs what is not done yet; `say` gets one line whenever a stage begins or ends."""
    for number, stage in enumerate(STAGES, 1):
        if job.only not in (None, stage):
            continue
        title = f"[{number}/{len(STAGES)}] {stage:12}"
        wanted = team.alone(lambda: prepare(job, stage))  # noqa: B023 - called at once
        if wanted is None:
            say(f"{title} done before")
            continue
        say(f"{title} running")
        seconds = run_one(job, team, stage, wanted, runners[stage])
        say(f"{title} done in {duration(seconds)}")


def run_one(job: Job, team: Team, stage: str, wanted: Fingerprint, run: Callable[[Job], None]) -> float:
    """Runs a stage and marks it as done; returns its seconds."""
    code: dict[str, Any] = provenance()  # now, because the working tree may move on while the stage lasts
    started = time.monotonic()
    if stage in TOGETHER:
        run(job)
    else:
        team.alone(lambda: run(job))
    seconds = time.monotonic() - started
    record = {**code, "seconds": round(seconds, 1), "processes": job.machine.devices * job.machine.nodes}
    team.alone(lambda: finish(job.out, stage, wanted, record))
    return seconds
