"""From high-resolution images, and low-resolution ones that match none of them, to a trained super-resolver.

`medrestore train superresolve --hr ... --lr ... --scale 2 --degradation mix --preset cpu --out ...`

Stages: audit (read, split), degradation (learn what makes the low-resolution images small, blurred and noisy), restore
(train the network that is served), adversarial (with --adversarial: a variant with invented texture), report. A call
that was stopped, or killed, goes on where its last checkpoint left it: `medrestore train superresolve --out OUT` is
enough.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.machine import Machine
from training.pipeline.call import accept, add_options, carry_out, on_record, read_record, will_run
from training.pipeline.sequence import Job
from training.superresolution.config import SUPERRESOLVE_PRESETS, SuperresolveConfig, for_scale
from training.superresolution.plan import TASK, superresolver

KINDS = ("pdm", "blind", "bicubic", "mix")
NAMED = ("degradation.scale", "degradation.kind", "adversarial.train")  # settings that have an option of their own


@dataclass(frozen=True)
class Folders:
    """What lies outside of the run's folder."""

    hr: Path | None
    lr: Path | None
    noise: Path | None  # file of a noise population


def run_audit(job: Job) -> None:
    from training.superresolution import audit

    audit.run(job.out, job.config.audit, hr=job.folders.hr, lr=job.folders.lr, seed=job.config.seed)
    for line in audit.findings(job.out):
        print(f"      {line}", file=sys.stderr)


def run_degradation(job: Job) -> None:
    from training.superresolution import degradation

    if job.machine.threads:
        torch.set_num_threads(job.machine.threads)
    noise = job.folders.noise
    fabric = degradation.run(job.out, job.config.degradation, noise=noise, seed=job.config.seed, machine=job.machine)
    for line in degradation.findings(job.out) if fabric.is_global_zero else ():
        print(f"      {line}", file=sys.stderr)


def run_restore(job: Job) -> None:
    from training.superresolution import restoration

    restoration.run(job.out, job.config.restore, seed=job.config.seed, machine=job.machine)


def run_adversarial(job: Job) -> None:
    from training.superresolution import variant

    config = job.config
    variant.run(job.out, config.adversarial, config.restore, seed=config.seed, machine=job.machine)


def run_report(job: Job) -> None:
    from training.superresolution import report

    report.run(job.out, job.config.report, seed=job.config.seed)


RUNNERS: dict[str, Callable[[Job], None]] = {
    "audit": run_audit,
    "degradation": run_degradation,
    "restore": run_restore,
    "adversarial": run_adversarial,
    "report": run_report,
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="medrestore train superresolve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hr", type=Path, help="folder of high-resolution images: photographs, DICOM, PNG, TIFF, NPY")
    parser.add_argument("--lr", type=Path, help="folder of low-resolution images; bicubic and blind do without")
    parser.add_argument("--scale", type=int, choices=(2, 4), help="how many times larger; needed on the first call")
    parser.add_argument("--degradation", choices=KINDS, help="what makes images small in training; default: mix")
    parser.add_argument("--noise", type=Path, metavar="RUN", help="pipeline run of a denoiser whose noise is taken")
    parser.add_argument("--adversarial", action="store_true", help="train the adversarial variant, too")
    add_options(parser, tuple(RUNNERS), "the network")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore train superresolve`; returns the exit status."""
    options = parse(argv)
    command = superresolver(adversarial=False).command
    return carry_out(options, lambda machine: make_job(options, machine), RUNNERS, command)


def make_job(options: argparse.Namespace, machine: Machine) -> Job:
    """The job of these options and of the run's record, which it writes. Raises ValueError."""
    record = read_record(options.out)
    if record and record.get("task") != TASK:
        raise ValueError(f"{options.out} holds a run of `medrestore pipeline`; use another --out")
    config, preset = choose_config(options, record)
    folders = Folders(
        options.hr or on_record(record, "hr"),
        options.lr or on_record(record, "lr"),
        population_of(options.noise) or on_record(record, "noise"),
    )
    plan = superresolver(config.adversarial.train)
    job = Job(options.out, folders, config, machine, options.stage, options.redo, plan)
    if job.only not in (None, *plan.stages):
        raise ValueError(f"--stage {job.only}: this run has no such stage; add --adversarial")
    refuse_the_impossible(job)
    return accept(job, preset)


def choose_config(options: argparse.Namespace, record: dict[str, Any]) -> tuple[SuperresolveConfig, str]:
    """The configuration of these options; scale, degradation and variant stay as on record where they are not named."""
    before = SUPERRESOLVE_PRESETS.from_record(record["config"]) if record else None
    known = (before.degradation.scale, before.degradation.kind, before.adversarial.train) if before else (None,) * 3
    given = (options.scale, options.degradation, options.adversarial or None)
    scale: int | None = options.scale or known[0]
    if scale is None:
        raise ValueError("--scale is missing: 2 or 4")
    if before and scale != known[0] and not options.preset:
        raise ValueError(f"--scale {scale}: the settings of this run are for x{known[0]}; name the --preset, too")
    overrides = []
    for key, value, other in zip(NAMED, given, known, strict=True):
        chosen = other if value is None else value
        others = record and options.stage not in (None, key.split(".")[0])  # one stage alone asks for nothing of others
        same = others and chosen == other
        if chosen is not None and not same:
            overrides.append(f"{key}={str(chosen).lower()}")
            overrides += ["degradation.shares={}"] if value in KINDS[:-1] else []  # those that there were of a mix
    options = argparse.Namespace(**{**vars(options), "set": overrides + options.set})
    return SUPERRESOLVE_PRESETS.choose(options, record, lambda document: for_scale(document, scale))


def population_of(run: Path | None) -> Path | None:
    """The noise population of a denoiser's run. Raises ValueError where that run has none."""
    if run is None:
        return None
    from training.pipeline.synthesis import POPULATION

    if not (run / POPULATION).is_file():
        raise ValueError(f"--noise {run}: no run of `medrestore pipeline` that has got as far as {POPULATION}")
    return run / POPULATION


def refuse_the_impossible(job: Job) -> None:
    """Raises ValueError or BundleError now for what would end a stage hours from now."""
    from training.superresolution import restoration, variant

    config, scale = job.config, job.config.degradation.scale
    if config.degradation.mixture.pdm and job.folders.lr is None and will_run(job, "audit"):
        from training.superresolution.degradation import require_low

        require_low([])
    if will_run(job, "restore"):
        restoration.check(config.restore, scale)
    if config.adversarial.train and will_run(job, "adversarial"):
        variant.check(config.adversarial, scale)
