"""The order of the stages: each is skipped where it is done, and refused where it would build on something else."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.machine import Machine
from training.pipeline.plan import DENOISER, Plan
from training.pipeline.stage import (
    DONE,
    Fingerprint,
    begin,
    check,
    content_digest,
    discard,
    done,
    fingerprint,
    finish,
    provenance,
    recorded,
    require,
)
from training.pipeline.team import Team

LOCK = ".lock"


@dataclass(frozen=True)
class Folders:
    """Where the images of a denoiser's run lie."""

    noisy: Path | None
    clean: Path | None


@dataclass(frozen=True)
class Job:
    """One call of a command that runs stages."""

    out: Path
    folders: Any  # a dataclass with a `Path | None` for each thing of `plan.outside`
    config: Any  # a dataclass with a section for each stage, and the seed
    machine: Machine
    only: str | None = None
    redo: bool = False
    plan: Plan = DENOISER

    def fingerprint(self, stage: str) -> Fingerprint:
        """What the stage would be made from now."""
        return self.made_from(stage, outside(self, stage))

    def made_from(self, stage: str, more: dict[str, str]) -> Fingerprint:
        """The same, where it reads `more` from outside of the run's folder."""
        return fingerprint(self.out, stage, getattr(self.config, stage), self.config.seed, more, self.plan)


def outside(job: Job, stage: str) -> dict[str, str]:
    """The hashes of what a stage reads from outside; those on record where it is done and that is out of reach."""
    before = recorded(job.out, stage) if (job.out / stage / DONE).exists() else None
    found = {}
    for name, place in job.plan.outside.items():
        if place.stage != stage:
            continue
        path: Path | None = getattr(job.folders, name)
        if path is not None and (path.is_file() if place.file else path.is_dir()):
            found[name] = content_digest(path)
        elif before and name in before.inputs:
            found[name] = before.inputs[name]
        elif path is not None:
            raise ValueError(f"--{name} {path} is no {'file' if place.file else 'folder'}")
        elif place.required:
            raise ValueError(f"--{name} is missing: {place.what}")
    return found


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
    for stage in [job.only] if job.only else job.plan.stages:
        before = recorded(job.out, stage)
        if before and not job.redo and stage not in job.plan.remade:
            wanted = job.made_from(stage, {})
            check(job.out, stage, Fingerprint(wanted.config, wanted.seed, before.inputs))


def prepare(job: Job, stage: str) -> Fingerprint | None:
    """Makes room for a stage; None where it is done already."""
    require(job.out, job.plan.stages[: job.plan.stages.index(stage)])
    wanted = job.fingerprint(stage)
    if done(job.out, stage, wanted.digest) and not (job.redo and job.only):
        return None
    redo = job.redo or stage in job.plan.remade
    if redo and (job.only or recorded(job.out, stage) != wanted):
        discard(job.out, stage)
    begin(job.out, stage, wanted)
    return wanted


def run_all(job: Job, team: Team, runners: Mapping[str, Callable[[Job], None]], say: Callable[[str], None]) -> None:
    """Runs what is not done yet; `say` gets one line whenever a stage begins or ends."""
    stages = job.plan.stages
    for number, stage in enumerate(stages, 1):
        if job.only not in (None, stage):
            continue
        title = f"[{number}/{len(stages)}] {stage:12}"
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
    if stage in job.plan.together:
        run(job)
    else:
        team.alone(lambda: run(job))
    seconds = time.monotonic() - started
    record = {**code, "seconds": round(seconds, 1), "processes": job.machine.devices * job.machine.nodes}
    team.alone(lambda: finish(job.out, stage, wanted, record))
    return seconds
