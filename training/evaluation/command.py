"""`medrestore evaluate TABLE ...`: scores bundles on held-back images, beside classical methods.

Tables go to standard output as Markdown, and to --json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from training.degradation import recovery
from training.evaluation import ablation, coloured, denoise, estimate, level, network, pair, real, superresolve
from training.evaluation.case import degrade, degrade_all, white
from training.evaluation.image import SETS, HeldBack, read_group
from training.evaluation.kernel import read_kernels
from training.evaluation.score import Comparisons
from training.evaluation.table import Table, markdown, plain
from training.evaluation.variant import DEFAULT, read_variants
from training.restorer import Restorer, Service

BUNDLES = Path(__file__).parents[2] / "models" / "bundles"
WHOLE = 1 << 20  # pixels of a side
LEVELS = {
    "denoise": denoise.LEVELS,
    "ablation": ablation.LEVELS,
    "coloured": coloured.LEVELS,
    "levels": level.LEVELS,
    "estimate": estimate.LEVELS,
}
GROUPS = {
    "ablation": ["photographs", "medical"],
    "coloured": ["photographs", "medical"],
    "levels": ["photographs"],
    "estimate": ["photographs"],
}
Tables = dict[str, Table]


def read_images(options: argparse.Namespace, *groups: str) -> list[HeldBack]:
    """`--images` photographs, half as many of every other set."""
    counts = {group: options.images if group == "photographs" else max(1, options.images // 2) for group in groups}
    return [image for group, count in counts.items() for image in read_group(options.data, options.sets, group, count)]


def read_restorers(options: argparse.Namespace) -> dict[str, Restorer]:
    """The denoisers that `--model` names, or the service behind `--url`."""
    models = options.model or ["denoise"]
    if url := getattr(options, "url", None):
        return {DEFAULT: Service(url, "denoise", models[0], 1, options.precision)}
    return read_variants(models, options.repository, options.threads)


def denoise_tables(options: argparse.Namespace) -> Tables:
    comparisons = Comparisons(options.cache)
    restorers = {} if options.comparators_only else read_restorers(options)
    photographs, medical = read_images(options, "photographs"), read_images(options, "medical")
    noises = [white(sigma, clipped) for sigma in options.levels for clipped in (False, True)]
    cases = degrade_all(photographs + medical, noises)
    tables = {"denoise": denoise.denoising_table(cases, restorers, comparisons)}
    if restorers:
        hounsfield = read_images(options, "hounsfield")
        tables["hounsfield"] = denoise.hounsfield_table(hounsfield, restorers, comparisons)
        estimators = {name: restorer.noise_level for name, restorer in restorers.items()}
        cases = degrade_all(photographs + medical, [white(sigma) for sigma in estimate.LEVELS])
        tables["estimate"] = estimate.estimate_table(cases, estimators)
        halves = [denoise.reduced(image) for image in photographs]
        tables["noise_free"] = denoise.untouched_table(halves + medical, restorers)
    return tables


def level_tables(options: argparse.Namespace) -> Tables:
    specialists = read_variants(options.specialist, options.repository, options.threads)
    by_level = {float(sigma): restorer for sigma, restorer in specialists.items()}
    images = read_images(options, *options.groups)
    return {"levels": level.level_table(images, read_restorers(options), by_level, options.levels)}


def ablation_tables(options: argparse.Namespace) -> Tables:
    noises = ablation.noises(read_kernels(options.data, options.sets), options.levels)
    noises += [replace(noise, clipped=True) for noise in noises] if options.clipped else []
    cases = degrade_all(read_images(options, *options.groups), noises)
    found = ablation.ablation_table(cases, read_restorers(options), Comparisons(options.cache), options.ceiling)
    return {"ablation": found}


def coloured_tables(options: argparse.Namespace) -> Tables:
    images, kernels = read_images(options, *options.groups), read_kernels(options.data, options.sets)
    specialists = read_variants(options.specialist, options.repository, options.threads)
    if unknown := set(specialists) - set(kernels):
        raise ValueError(f"--specialist {unknown.pop()!r}: no such kernel; there are {', '.join(kernels)}")
    restorers, comparisons = read_restorers(options), Comparisons(options.cache)
    return {"coloured": coloured.coloured_table(images, kernels, restorers, specialists, comparisons, options.levels)}


def estimate_tables(options: argparse.Namespace) -> Tables:
    images = read_images(options, *options.groups)
    noises = estimate.noises(read_kernels(options.data, options.sets), options.levels)
    estimators = {name: restorer.noise_level for name, restorer in read_restorers(options).items()}
    table = estimate.estimate_table(degrade_all(images, noises), estimators)
    noisy = degrade(images[0], white(25.0)).noisy
    return {"estimate": table, "estimate_cost": estimate.cost_table(noisy, estimators)}


def real_tables(options: argparse.Namespace) -> Tables:
    restorers, comparisons = read_restorers(options), Comparisons(options.cache)
    noisy, clean = (
        list(read_group(options.data, options.sets, group, options.images, WHOLE))
        for group in ("really_noisy", "nearly_clean")
    )
    return {
        "real": real.real_table(noisy, restorers, options.panels),
        "nearly_clean": real.untouched_table(clean, restorers),
        "pairs": pair.pair_table(pair.find_pairs(options.data), restorers, comparisons),
    }


def degradation_tables(options: argparse.Namespace) -> Tables:
    torch.set_num_threads(options.threads)
    chosen = options.cases, options.seeds, options.photographs, options.steps
    return {"degradation": recovery.recovery_table(options.data, options.out, *chosen)}


COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], Tables]]] = {
    "denoise": ("white noise beside BM3D and non-local means", denoise_tables),
    "superresolve": ("super-resolution beside bicubic interpolation", superresolve.tables),
    "ablation": ("variants side by side on known noise, blind and told", ablation_tables),
    "coloured": ("noise of measured colours on clean images", coloured_tables),
    "levels": ("one model over many levels beside specialists", level_tables),
    "estimate": ("noise-level estimates and what they cost", estimate_tables),
    "real": ("really noisy images, nearly clean ones, real pairs", real_tables),
    "degradation": ("does a learned degradation find a known one", degradation_tables),
    "networks": ("every network of a task after an equal training budget", network.tables),
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="medrestore evaluate", description=__doc__)
    commands = parser.add_subparsers(title="tables", metavar="TABLE", dest="table", required=True)
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, (text, _) in COMMANDS.items()}
    for name in parsers.keys() - {"degradation"}:
        add_common(parsers[name], name)
    for name in ("denoise", "superresolve"):
        parsers[name].add_argument("--url", help="a running service; without it the bundle runs in this process")
        parsers[name].add_argument("--precision", choices=["exact", "fast"], help="of the service; default: its own")
    parsers["denoise"].add_argument("--comparators-only", action="store_true", help="fill --cache; needs no model")
    superresolve.add_options(parsers["superresolve"])
    add_levels(parsers)
    parsers["ablation"].add_argument("--clipped", action="store_true", help="all noise clipped to 8 bits as well")
    parsers["ablation"].add_argument("--ceiling", default=ablation.CEILING, help="the model that knew the noise")
    parsers["real"].add_argument("--panels", type=Path, help="folder for before, after and removed as PNG")
    network.add_options(parsers["networks"])
    add_recovery(parsers["degradation"])
    return parser.parse_args(argv)


def add_common(command: argparse.ArgumentParser, table: str) -> None:
    """Options of every table; the one of super-resolution can do without --data."""
    choice = table == "superresolve"
    command.add_argument("--data", type=Path, required=not choice, help="folder that the sets' folders lie in")
    command.add_argument("--sets", type=Path, default=SETS, help="TOML file that names the held-back images")
    images = "photographs (default: 12); half as many of each medical set" + "; of --set (default: all)" * choice
    command.add_argument("--images", type=int, default=None if choice else 12, help=images)
    command.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]PLACE",
        help="name or name@version in --repository, REPOSITORY/name[@version], the folder of a bundle or of a "
        "training run, or a pipeline's OUT for its stage 1; repeatable",
    )
    command.add_argument("--repository", type=Path, default=BUNDLES)
    command.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0 leaves it to that")
    command.add_argument("--cache", type=Path, help="file that keeps the comparators' scores")
    command.add_argument("--json", type=Path, help="writes the tables there too")


def add_levels(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Options of the tables that put noise on clean images."""
    for name, levels in LEVELS.items():
        parsers[name].add_argument("--levels", type=float, nargs="+", default=levels, help="grey levels of 255")
    for name, groups in GROUPS.items():
        parsers[name].add_argument("--groups", nargs="+", default=groups, help="groups of sets of the file --sets")
    for name, noise in (("levels", "SIGMA"), ("coloured", "KERNEL")):
        parsers[name].add_argument(
            "--specialist", action="append", default=[], metavar=f"{noise}=PLACE", help="trained on that noise alone"
        )


def add_recovery(command: argparse.ArgumentParser) -> None:
    """Options of the table of learned degradations, which needs no model and no other images than photographs."""
    command.add_argument("--data", type=Path, required=True, help="folder that has natural/bsds500/*.jpg")
    command.add_argument("--threads", type=int, default=1, help="of PyTorch")
    command.add_argument("--json", type=Path, help="writes the table there too")
    command.add_argument("--out", type=Path, required=True, help="folder of the runs; a second call goes on there")
    command.add_argument("--cases", nargs="+", default=["x2"], help=f"of {', '.join(recovery.CASES)}")
    command.add_argument("--seeds", type=int, nargs="+", default=[0])
    command.add_argument("--photographs", type=int, default=100, help="as they are, and as many others degraded")
    command.add_argument("--steps", type=int, default=0, help="of the training; default: the configuration's")


def main(argv: list[str]) -> int:
    """Entry point of `medrestore evaluate`; returns the exit status."""
    options = parse(argv)
    tables = COMMANDS[options.table][1](options)
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown(rows)}")
    if options.json:
        options.json.write_text(json.dumps(plain(tables), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0
