"""From a folder of noisy images to a trained denoiser: `medrestore pipeline run --noisy ... --clean ... --out ...`.

Stages: audit (read, split, measure), preliminary (learn to denoise from the noisy images alone), synthesis (learn
their noise), profound (train the denoiser that is served), report. A call that was stopped, or killed, goes on where
its last checkpoint left it: `medrestore pipeline run --out OUT` is enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.machine import Machine
from training.pipeline.call import accept, add_options, carry_out, on_record, read_record, will_run
from training.pipeline.config import PIPELINE_PRESETS, PipelineConfig
from training.pipeline.plan import DENOISER
from training.pipeline.preset import CONFIGS, PRESETS
from training.pipeline.sequence import Folders, Job
from training.pipeline.stage import STAGES
from training.pipeline.status import show_status

__all__ = ["CONFIGS", "PRESETS", "RUNNERS", "choose_config", "main", "parse", "refuse_the_impossible"]


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
    add_options(run, STAGES, "stage 3")
    status = commands.add_parser("status", help="say what is done, of this or of `medrestore train superresolve`")
    status.add_argument("out", type=Path, help="folder of the run")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore pipeline`; returns the exit status."""
    options = parse(argv)
    if options.command == "status":
        return show_status(options.out)
    return carry_out(options, lambda machine: make_job(options, machine), RUNNERS, DENOISER.command)


def make_job(options: argparse.Namespace, machine: Machine) -> Job:
    """The job of these options and of the run's record, which it writes. Raises ValueError."""
    record = read_record(options.out)
    config, preset = choose_config(options, record)
    folders = Folders(options.noisy or on_record(record, "noisy"), options.clean or on_record(record, "clean"))
    job = Job(options.out, folders, config, machine, options.stage, options.redo)
    refuse_the_impossible(job)
    return accept(job, preset)


def refuse_the_impossible(job: Job) -> None:
    """Raises ValueError or BundleError now for what would end a stage hours from now."""
    from training.pipeline import learner, profound

    if will_run(job, "preliminary"):
        learner.blind_spot(job.config.preliminary)
    if will_run(job, "profound"):
        profound.check(job.config.profound)


def choose_config(options: argparse.Namespace, record: dict[str, Any]) -> tuple[PipelineConfig, str]:
    """The preset asked for, else the one on record, else `cpu`; with the overrides on top (see `Presets.choose`)."""
    return PIPELINE_PRESETS.choose(options, record)
