"""`medrestore evaluate superresolve`: the field's benchmark on a folder (--set), or our own sets (--data)."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from training.evaluation.image import read_group
from training.evaluation.protocol import benchmark_images, y_shave_table
from training.evaluation.reduction import KINDS, degradations, find_learned, reduce_all
from training.evaluation.superresolution import summary, superresolution_table
from training.evaluation.table import Table
from training.evaluation.upscaler import Upscale
from training.evaluation.variant import DEFAULT, read_variants
from training.restorer import Service

PHOTOGRAPHS = 12


def add_options(command: argparse.ArgumentParser) -> None:
    """Options of this table alone."""
    command.add_argument("--scale", type=int, choices=[2, 4], default=2)
    command.add_argument("--set", type=Path, metavar="DIR", help="score a benchmark's folder of images, not --data")
    command.add_argument("--protocol", choices=["y-shave"], default="y-shave", help="how --set is scored")
    command.add_argument("--include", default="*", metavar="GLOB", help="files of --set; default: all")
    command.add_argument("--exclude", default="", metavar="GLOBS", help="files of --set left out, separated by spaces")
    command.add_argument(
        "--degradation", nargs="+", choices=KINDS, help="of the images of --data; default: all that there are"
    )
    command.add_argument("--pdm", type=Path, metavar="DIR", help="a learned degradation, or the run that has it")


def tables(options: argparse.Namespace) -> dict[str, Table]:
    """The tables of the command line. Raises ValueError where it names no images, or two kinds of them."""
    if (options.set is None) == (options.data is None):
        raise ValueError("give either --set DIR, a benchmark's folder, or --data DIR, the folder of the sets' folders")
    if options.set and (options.degradation or options.pdm):
        raise ValueError("--degradation and --pdm are for --data; --set is reduced as its protocol asks")
    if options.data and (options.include != "*" or options.exclude):
        raise ValueError("--include and --exclude are for --set; of --data the file --sets names the images")
    return benchmark_tables(options) if options.set else set_tables(options)


def benchmark_tables(options: argparse.Namespace) -> dict[str, Table]:
    paths = benchmark_images(options.set, options.include, options.exclude)
    if options.images:
        paths = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, options.images).round().astype(int))]
    table = y_shave_table(paths, options.scale, read_upscalers(options))
    return {f"x{options.scale} {options.protocol}": table}


def set_tables(options: argparse.Namespace) -> dict[str, Table]:
    learned = find_learned(options.pdm)
    kinds = options.degradation or [kind for kind in KINDS if kind != "pdm" or learned]
    ways = degradations(kinds, options.scale, learned)
    photographs = options.images or PHOTOGRAPHS
    counts = {"photographs": photographs, "medical": max(1, photographs // 2)}
    images = [
        image for group, count in counts.items() for image in read_group(options.data, options.sets, group, count)
    ]
    rows = superresolution_table(reduce_all(images, ways), options.scale, read_upscalers(options))
    return {f"x{options.scale}": rows, f"x{options.scale} over all sets": summary(rows)}


def read_upscalers(options: argparse.Namespace) -> dict[str, Upscale]:
    """What `--model` names, the shipped bundle of the scale without it, or the service behind `--url`."""
    models = options.model or [f"superresolve-x{options.scale}"]
    if options.url and (len(models) > 1 or "=" in models[0]):
        raise ValueError("--url asks a service for one model, by its name there: --model NAME")
    if options.url:
        service = Service(options.url, "superresolve", models[0], options.scale, options.precision)
        return {DEFAULT: service.restore}
    found = read_variants(models, options.repository, options.threads)
    return {name: restorer.restore for name, restorer in found.items()}
