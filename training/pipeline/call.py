"""One call of a command that runs stages: its options, its processes, what ends it, and what it leaves on record."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.machine import Machine
from training.pipeline.record import PIPELINE, read_json, write_json
from training.pipeline.sequence import Job, locked, refuse_other_configurations, run_all
from training.pipeline.stage import DONE, provenance
from training.pipeline.team import StageFailed, Team, launched

INTERRUPTED, TERMINATED = 130, 143
Runners = Mapping[str, Callable[[Job], None]]


def add_options(run: argparse.ArgumentParser, stages: tuple[str, ...], start: str) -> None:
    """What every such command takes; `start` says what goes on from a bundle."""
    run.add_argument("--out", type=Path, required=True, help="folder of the run; a second call resumes it")
    run.add_argument("--preset", help="smoke (minutes), cpu (an hour), gpu, or a TOML file; default: cpu")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides the preset")
    run.add_argument("--stage", choices=stages, help="run this one alone")
    run.add_argument("--redo", action="store_true", help="delete and make anew what was made with other settings")
    run.add_argument("--from", dest="start", metavar="BUNDLE", help=f"bundle that {start} goes on from, or none")
    run.add_argument("--devices", type=int, default=1, help="processes or GPUs on this machine")
    run.add_argument("--nodes", type=int, default=1, help="machines that train together")
    run.add_argument("--threads", type=int, default=0, help="CPU threads of a process; 0 leaves it to PyTorch")
    run.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    run.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")


def carry_out(options: argparse.Namespace, make_job: Callable[[Machine], Job], runners: Runners, command: str) -> int:
    """Runs the stages, in all processes of the machine; returns the exit status.

    `make_job` is called once, by the first process, which then holds the run's folder.
    """
    machine = launched(Machine(options.accelerator, options.devices, options.nodes, options.threads, options.workers))
    signal.signal(signal.SIGTERM, terminate)
    logging.getLogger("lightning").setLevel(logging.ERROR)  # speaks of precision and ranks at every stage
    team = None
    try:
        team = Team(machine)
        run(options.out, lambda: make_job(machine), team, runners)
        return 0
    except StageFailed:
        return 1
    except KeyboardInterrupt as stop:
        if team is None or team.first:
            print(f"\nmedrestore: interrupted; to go on: {command} --out {options.out}", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    finally:
        if team is not None:
            team.close()


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it takes the machine away."""


def terminate(*_: Any) -> None:
    raise Terminated


def run(out: Path, make_job: Callable[[], Job], team: Team, runners: Runners) -> None:
    """Runs the stages of a job that the first process makes; only that one speaks."""
    if not team.first:
        run_all(team.alone(make_job), team, runners, lambda line: None)
        return
    with locked(out):
        run_all(team.alone(make_job), team, runners, lambda line: print(line, file=sys.stderr, flush=True))


def read_record(out: Path) -> dict[str, Any]:
    """What the call before left on record of the run; empty where there was none."""
    path = out / PIPELINE
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    return record


def on_record(record: dict[str, Any], name: str) -> Path | None:
    """The folder or file outside of the run that the call before named by that option."""
    known = record.get("folders", {}).get(name)
    return Path(known) if known else None


def accept(job: Job, preset: str) -> Job:
    """The same job, on record. Raises ValueError where it would read its own output, or go on with something else."""
    for place in vars(job.folders).values():
        if place and job.out.resolve().is_relative_to(place.resolve()):
            raise ValueError(f"--out {job.out} lies in {place}: the run would read what it writes")
    refuse_other_configurations(job)
    folders = {name: str(place.resolve()) if place else None for name, place in vars(job.folders).items()}
    record = {"preset": preset, "config": dataclasses.asdict(job.config), "seed": job.config.seed, "folders": folders}
    write_json(job.out / PIPELINE, {**record, "task": job.plan.task, **provenance()})
    return job


def will_run(job: Job, stage: str) -> bool:
    """Whether the call may get to this stage's work."""
    return job.only in (None, stage) and (job.redo or not (job.out / stage / DONE).exists())
