"""From a folder of noisy images to a trained denoiser: `medrestore pipeline run --noisy ... --clean ... --out ...`.

Stages: audit (read, split, measure), preliminary (learn to denoise from the noisy images alone), synthesis (learn
their noise), profound (train the denoiser that is served), report. A call that was stopped, or killed, goes on where
its last checkpoint left it: `medrestore pipeline run --out OUT` is enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.bundle import MANIFEST
from training.machine import Machine
from training.pipeline.config import PipelineConfig, from_record, read_pipeline_config
from training.pipeline.record import PIPELINE, read_json, write_json
from training.pipeline.sequence import Folders, Job, locked, refuse_other_configurations, run_all
from training.pipeline.stage import DONE, STAGES, provenance
from training.pipeline.status import show_status
from training.pipeline.team import StageFailed, Team, launched

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = ("smoke", "cpu", "gpu")
INTERRUPTED, TERMINATED = 130, 143


def run_audit(job: Job) -> None:
    from training.pipeline import audit

    audit.run(job.out, job.config.audit, noisy=job.folders.noisy, clean=job.folders.clean, seed=job.config.seed)
    for line in audit.findings(job.out):
        print(f"      {line}", file=sys.stderr)


def run_preliminary(job: Job) -> None:
    from training.pipeline import preliminary

    preliminary.run(job.out, job.config.preliminary, seed=job.config.seed, **dataclasses.asdict(job.machine))


def run_synthesis(job: Job) -> None:
    from training.pipeline import synthesis

    synthesis.run(job.out, job.config.synthesis, seed=job.config.seed)


def run_profound(job: Job) -> None:
    from training.pipeline import profound

    profound.run(job.out, job.config.profound, seed=job.config.seed, **dataclasses.asdict(job.machine))


def run_report(job: Job) -> None:
    from training.report import build

    build.run(job.out, job.config.report, seed=job.config.seed)


RUNNERS: dict[str, Callable[[Job], None]] = {
    "audit": run_audit,
    "preliminary": run_preliminary,
    "synthesis": run_synthesis,
    "profound": run_profound,
    "report": run_report,
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="medrestore pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="run the stages that are not done yet")
    run.add_argument("--noisy", type=Path, help="folder of noisy images: DICOM, PNG, TIFF, NPY; no clean ones needed")
    run.add_argument("--clean", type=Path, help="folder of clean photographs")
    run.add_argument("--out", type=Path, required=True, help="folder of the run; a second call resumes it")
    run.add_argument("--preset", help="smoke (minutes), cpu (an hour), gpu, or a TOML file; default: cpu")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides the preset")
    run.add_argument("--stage", choices=STAGES, help="run this one alone")
    run.add_argument("--redo", action="store_true", help="delete and make anew what was made with other settings")
    run.add_argument("--from", dest="start", metavar="BUNDLE", help="bundle that stage 3 goes on from, or none")
    run.add_argument("--devices", type=int, default=1, help="processes or GPUs on this machine")
    run.add_argument("--nodes", type=int, default=1, help="machines that train together")
    run.add_argument("--threads", type=int, default=0, help="CPU threads of a process; 0 leaves it to PyTorch")
    run.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    run.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")
    status = commands.add_parser("status", help="say what is done")
    status.add_argument("out", type=Path, help="folder of the run")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore pipeline`; returns the exit status."""
    options = parse(argv)
    if options.command == "status":
        return show_status(options.out)
    machine = launched(Machine(options.accelerator, options.devices, options.nodes, options.threads, options.workers))
    signal.signal(signal.SIGTERM, terminate)
    logging.getLogger("lightning").setLevel(logging.ERROR)  # speaks of precision and ranks at every stage
    team = None
    try:
        team = Team(machine)
        return run(options, machine, team)
    except StageFailed:
        return 1
    except KeyboardInterrupt as stop:
        if team is None or team.first:
            print(f"\nmedrestore: interrupted; to go on: medrestore pipeline run --out {options.out}", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    finally:
        if team is not None:
            team.close()


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it takes the machine away."""


def terminate(*_: Any) -> None:
    raise Terminated


def run(options: argparse.Namespace, machine: Machine, team: Team) -> int:
    """Runs the stages, in all processes of the team."""
    if not team.first:
        job = team.alone(lambda: None)
        run_all(job, team, RUNNERS, lambda line: None)  # type: ignore[arg-type]
        return 0
    with locked(options.out):
        job = team.alone(lambda: make_job(options, machine))
        run_all(job, team, RUNNERS, lambda line: print(line, file=sys.stderr, flush=True))
    return 0


def make_job(options: argparse.Namespace, machine: Machine) -> Job:
    """The job of these options and of the run's record, which it writes. Raises ValueError."""
    path = options.out / PIPELINE
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    config, preset = choose_config(options, record)
    known = record.get("folders", {})
    folders = Folders(*(given or (Path(known[n]) if known.get(n) else None) for n, given in folder_options(options)))
    job = Job(options.out, folders, config, machine, options.stage, options.redo)
    refuse_the_impossible(job)
    refuse_other_configurations(job)
    write_json(
        path,
        {
            "preset": preset,
            "config": dataclasses.asdict(config),
            "seed": config.seed,
            "folders": {n: str(p.resolve()) if p else None for n, p in dataclasses.asdict(folders).items()},
            **provenance(),
        },
    )
    return job


def refuse_the_impossible(job: Job) -> None:
    """Raises ValueError or BundleError now for what would end a stage hours from now."""
    from training.pipeline import learner, profound

    for folder in (job.folders.noisy, job.folders.clean):
        if folder and job.out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--out {job.out} lies in {folder}: the run would read what it writes")
    if will_run(job, "preliminary"):
        learner.blind_spot(job.config.preliminary)
    if will_run(job, "profound"):
        profound.check(job.config.profound)


def will_run(job: Job, stage: str) -> bool:
    """Whether the call may get to this stage's work."""
    return job.only in (None, stage) and (job.redo or not (job.out / stage / DONE).exists())


def folder_options(options: argparse.Namespace) -> list[tuple[str, Path | None]]:
    return [("noisy", options.noisy), ("clean", options.clean)]


def choose_config(options: argparse.Namespace, record: dict[str, Any]) -> tuple[PipelineConfig, str]:
    """The preset asked for, else the one on record, else `cpu`; with the overrides on top.

    One stage alone takes its own section from there; the others, and the seed, stay as they are on record. Raises
    ValueError for an override that would do nothing there.
    """
    if record and options.stage:
        others = [text for text in options.set if not text.startswith(f"{options.stage}.")]
        others += ["--from"] if options.start and options.stage != "profound" else []
        if others:
            raise ValueError(f"{others[0]}: --stage {options.stage} changes the settings of this stage alone")
    config, preset = new_config(options, record)
    if not record or not options.stage:
        return config, preset
    stage = {options.stage: getattr(config, options.stage)}
    return dataclasses.replace(from_record(record["config"]), **stage), record["preset"]


def new_config(options: argparse.Namespace, record: dict[str, Any]) -> tuple[PipelineConfig, str]:
    """The configuration of a call that runs every stage."""
    overrides = list(options.set)
    if options.start:
        start = Path(options.start)
        place = "" if options.start == "none" else start.resolve() if (start / MANIFEST).is_file() else start
        overrides.append(f"profound.start={place}")
    if record and not options.preset:
        return from_record(record["config"], overrides), record["preset"]
    name = options.preset or "cpu"
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"pipeline-{name}.toml"
    if not path.is_file():
        raise ValueError(f"--preset {name}: neither a file nor one of {', '.join(PRESETS)}")
    return read_pipeline_config(path, overrides), path.stem.removeprefix("pipeline-")
