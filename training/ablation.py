"""Small denoisers that differ only in what taught them: `medrestore ablate --run RUN --data DIR --out DIR`.

Each variant is a run folder of its own, made from what stages 1 and 2 of a pipeline run left, and goes on where it was
stopped. `medrestore evaluate ablation`, `levels` and `coloured` compare them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.config import Fit, build
from training.data.noise import Kernel, NoiseLaw, NoisePopulation, Population
from training.evaluation.ablation import noises
from training.evaluation.image import SETS
from training.evaluation.kernel import read_kernels
from training.machine import Machine
from training.objective import denoising
from training.pipeline import profound
from training.pipeline.config import PipelineConfig, read_run_config
from training.pipeline.record import read_audit
from training.train import Task, build_graph, commit, fit_graph, write_run

ENTRIES = Path(__file__).parent / "configs" / "variants.toml"
COLOURED = (3.0, 40.0)  # levels of a colour's specialist, grey levels of 255, drawn log-uniformly


@dataclass(frozen=True)
class Variant:
    """What one denoiser is taught: real images for a share of its samples, photographs with noise for the rest."""

    name: str  # of its folder
    real_share: float = 0.0
    noise: str = "learned"  # "learned": as in stage 3; "table": of the table's laws; or of one "level" or "colour"
    level: float = 0.0  # grey levels of 255
    colour: str = ""  # a set of the group `coloured`

    def __post_init__(self) -> None:
        if self.noise not in ("learned", "table", "level", "colour"):
            raise ValueError(f"variant {self.name}: noise {self.noise!r} is none of learned, table, level and colour")
        if (self.noise == "level") != (self.level > 0) or (self.noise == "colour") != bool(self.colour):
            raise ValueError(f"variant {self.name}: a level goes with noise 'level', a colour with noise 'colour'")


@dataclass(frozen=True)
class Programme:
    """All variants, and the one way in which they are trained."""

    fit: Fit
    variants: tuple[Variant, ...]
    seed: int = 0


@dataclass(frozen=True)
class Laws:
    """Some laws, each as likely as the others."""

    laws: tuple[NoiseLaw, ...]

    def draw(self, rng: np.random.Generator) -> NoiseLaw:
        return self.laws[int(rng.integers(len(self.laws)))]


@dataclass(frozen=True, eq=False)
class Coloured:
    """One colour at any level of a range, in grey levels of 255."""

    kernel: Kernel
    levels: tuple[float, float] = COLOURED

    def draw(self, rng: np.random.Generator) -> NoiseLaw:
        level = np.exp(rng.uniform(*np.log(self.levels))) / 255
        return NoiseLaw(0.0, float(level**2), self.kernel)


@dataclass(frozen=True)
class Bench:
    """A pipeline run whose stages 1 and 2 are done, and the images that the tables take their colours from."""

    run: Path
    config: PipelineConfig
    kernels: dict[str, Kernel]

    def population(self, variant: Variant) -> Population:
        """The noise that a variant meets on photographs."""
        if variant.noise == "learned":
            return profound.population(self.run, self.config.profound)
        if variant.noise == "table":
            return Laws(tuple(noise.law for noise in noises(self.kernels)))
        if variant.noise == "level":
            return NoisePopulation(variant.level / 255, variant.level / 255, poisson_share=0.0)
        if variant.colour not in self.kernels:
            raise ValueError(f"variant {variant.name}: no set {variant.colour!r}; there are {', '.join(self.kernels)}")
        return Coloured(self.kernels[variant.colour])

    def train(self, variant: Variant, programme: Programme, out: Path, machine: Machine) -> None:
        """Trains one variant in `out`; its noise estimator is that of the run, so that all are told the same."""
        streams = dataclasses.replace(self.config.profound.streams, real_share=variant.real_share)
        stage = dataclasses.replace(self.config.profound, restore=programme.fit, streams=streams, start="")
        config, audit = stage.train_config(programme.seed), read_audit(self.run)
        pairs = profound.samples(self.run, audit, config, "restore", self.population(variant), streams)
        objective = dataclasses.replace(denoising([]), validate=lambda network: {})
        network = build_graph(config, "restore", programme.fit)
        task = Task(config, "restore", network, pairs, objective, self.digest(variant, config.digest("restore")))
        fabric = fit_graph(task, out, machine)
        if not (out / "estimate").exists():
            shutil.copytree(self.run / profound.FOLDER / "estimate", out / "estimate")
        write_run(out, config, commit(), profound.data_list(audit), fabric, {"restore": task.digest}, None)

    def digest(self, variant: Variant, training: str) -> str:
        """SHA-256 of what decides a variant's weights."""
        inputs = profound.input_hashes(self.run)
        colours = {name: kernel.tolist() for name, kernel in self.kernels.items()}
        mixing = dataclasses.asdict(self.config.profound.streams)
        text = json.dumps([dataclasses.asdict(variant), training, mixing, inputs, colours], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_programme(path: Path = ENTRIES) -> Programme:
    """The variants of a file. Raises ValueError naming the key that is wrong."""
    return build(Programme, tomllib.loads(path.read_text(encoding="utf-8")), path.name)


def choose(programme: Programme, names: list[str]) -> list[Variant]:
    """The variants of those names, all where there are none. Raises ValueError for a name that is not there."""
    known = {variant.name: variant for variant in programme.variants}
    if unknown := set(names) - set(known):
        raise ValueError(f"--only {unknown.pop()}: no such variant; there are {', '.join(known)}")
    return [known[name] for name in names] or list(programme.variants)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="medrestore ablate", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a pipeline run with its stages 1 to 3 done")
    parser.add_argument("--data", type=Path, required=True, help="folder that the tables' sets lie in")
    parser.add_argument("--out", type=Path, required=True, help="folder of the variants; a second call goes on there")
    parser.add_argument("--entries", type=Path, default=ENTRIES, help="TOML file of the variants")
    parser.add_argument("--sets", type=Path, default=SETS, help="TOML file that names the held-back images")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="variants of that file; default: all")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore ablate`; returns the exit status."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    programme = read_programme(options.entries)
    chosen = choose(programme, options.only)
    kernels = read_kernels(options.data, options.sets)
    bench = Bench(options.run, read_run_config(options.run), kernels)
    for variant in chosen:
        print(f"{variant.name}: {programme.fit.steps} steps", flush=True)
        bench.train(variant, programme, options.out / variant.name, Machine("cpu", 1, 1, options.threads, 0))
    return 0
