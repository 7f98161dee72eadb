"""`medrestore evaluate networks`: every denoiser or super-resolver network after an equal training budget."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.degradation.config import KINDS
from training.evaluation import bench_denoiser, bench_upscaler
from training.evaluation.bench import read_entries
from training.evaluation.bench_denoiser import DenoiserBench
from training.evaluation.bench_upscaler import UpscalerBench, read_base
from training.evaluation.image import read_group
from training.evaluation.reduction import find_learned
from training.evaluation.table import Table

ENTRIES = {"denoise": bench_denoiser.ENTRIES, "superresolve": bench_upscaler.ENTRIES}


def add_options(command: argparse.ArgumentParser) -> None:
    """Options of this table alone."""
    command.add_argument("--task", choices=list(ENTRIES), default="denoise")
    command.add_argument("--out", type=Path, required=True, help="folder of the runs; a second call goes on there")
    command.add_argument("--minutes", type=float, default=10.0, help="CPU time of each network's training")
    command.add_argument(
        "--entries", type=Path, help="TOML file of networks (and images, of super-resolvers); default: that of the task"
    )
    command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="entries of that file; default: all")
    command.add_argument("--scale", type=int, choices=[2, 4], default=2, help="of super-resolvers")
    command.add_argument(
        "--degradation",
        nargs="+",
        choices=KINDS,
        help="what super-resolvers are trained on; default: bicubic, and mix with --pdm or blind without",
    )
    command.add_argument("--pdm", type=Path, metavar="DIR", help="a learned degradation, or the run that has it")


def tables(options: argparse.Namespace) -> dict[str, Table]:
    """The table of the command line."""
    if options.threads:
        torch.set_num_threads(options.threads)
    path = options.entries or ENTRIES[options.task]
    entries = read_entries(path, options.only)
    images = list(read_group(options.data, options.sets, "photographs", options.images))
    if options.task == "denoise":
        bench = DenoiserBench(options.out, bench_denoiser.read_base(), options.data, options.minutes)
        return {"networks": bench.rows(entries, images)}
    learned = find_learned(options.pdm)
    kinds = options.degradation or ["bicubic", "mix" if learned else "blind"]
    benches = [
        UpscalerBench(options.out, kind, read_base(path, options.scale, kind), options.data, options.minutes, learned)
        for kind in kinds
    ]
    rows = [row for entry in entries for bench in benches for row in bench.rows([entry], images)]
    return {f"networks x{options.scale}": rows}
