"""Trains the graphs of a denoiser: `medrestore train denoise --config ... --data ... --out ...`."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.networks.denoiser import Denoiser
from models.networks.registry import build_network
from training.checkpoint import load_checkpoint
from training.config import Fit, TrainConfig, read_config
from training.data.crop import CropMixture
from training.data.noise import Plane
from training.data.pair import NoisyPairs, Pairs
from training.data.source import Source, data_list
from training.loop import Objective, fit_network
from training.machine import Machine
from training.objective import denoising, noise_estimation
from training.start import begin, start_digest, start_record

CONFIGS = Path(__file__).parent / "configs"
WEIGHTS = "weights.pt"
RUN = "run.json"
TASKS = ("denoise", "superresolve")  # the second has stages of its own: `training.superresolution.command`


def build_graph(config: TrainConfig, graph: str, fit: Fit) -> nn.Module:
    """The untrained module of one graph, seeded."""
    torch.manual_seed(config.seed)
    network = build_network(fit.network, fit.options)
    return Denoiser(network) if (config.task, graph) == ("denoise", "restore") else network


def build_pairs(config: TrainConfig, graph: str, fit: Fit, crops: CropMixture) -> Pairs:
    """The dataset of one graph; each graph draws from its own seed."""
    seed = config.seed * 2 + (graph == "estimate")
    misjudged = 0.0 if graph == "estimate" else 0.1
    return NoisyPairs(crops, fit.pairs, seed, fit.batch, fit.steps, config.noise, misjudged)


def digest(config: TrainConfig, graph: str) -> str:
    """SHA-256 of what decides one graph's weights, the bundle that it starts from included."""
    return hashlib.sha256((config.digest(graph) + start_digest(config.start)).encode()).hexdigest()


def build_objective(config: TrainConfig, graph: str, planes: list[Plane]) -> Objective:
    """The loss of one graph, and its scores on the held-back images if there are any."""
    objective = noise_estimation(planes) if graph == "estimate" else denoising(planes)
    return objective if planes else dataclasses.replace(objective, validate=lambda network: {})


def validation_planes(config: TrainConfig, data: Path) -> list[Plane]:
    """The held-back images, as each source's first window or scale shows them."""
    planes = []
    for source in (Source(s, data) for s in config.validation):
        planes += [source.plane(i, np.random.default_rng(0)) for i in range(len(source))]
    return planes


def commit() -> str:
    """Revision of the code, or "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:  # git is not installed
        return "unknown"


def train(options: argparse.Namespace, config: TrainConfig, graphs: list[str]) -> None:
    """Trains graphs of the bundle; each leaves `weights.pt` in its folder, and the run `run.json`, in `options.out`."""
    code, start = commit(), start_record(config.start)  # now: both may move on while the run lasts
    machine = Machine(options.accelerator, options.devices, options.nodes, options.threads, options.workers)
    sources = [Source(source, options.data) for source in config.sources]
    planes = validation_planes(config, options.data)
    for graph in graphs:
        task = Task(
            config,
            graph,
            begin(build_graph(config, graph, config.fits[graph]), config.start, graph),
            build_pairs(config, graph, config.fits[graph], CropMixture(sources)),
            build_objective(config, graph, planes),
            digest(config, graph),
        )
        fabric = fit_graph(task, options.out, machine)
        if fabric.is_global_zero:
            data = data_list(sources, options.data)
            write_run(options.out, config, code, data, fabric, {graph: task.digest}, start)


@dataclass(frozen=True)
class Task:
    """One graph to be trained."""

    config: TrainConfig
    graph: str
    network: nn.Module  # as it starts
    pairs: Dataset[dict[str, Tensor]]
    objective: Objective
    digest: str  # of everything that decides the weights


def launch(machine: Machine, precision: str) -> Fabric:
    """All processes of the machine."""
    fabric = Fabric(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.nodes,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def fit_graph(task: Task, out: Path, machine: Machine) -> Fabric:
    """Trains a graph, or goes on with it, and leaves `weights.pt` in its folder below `out`."""
    fit = task.config.fits[task.graph]
    fabric = launch(machine, fit.precision)
    network = fit_network(
        task.network,
        task.pairs,
        task.objective,
        fit,
        out / task.graph,
        task.digest,
        fabric=fabric,
        checkpoint_every=task.config.checkpoint_every,
        validate_every=task.config.validate_every,
        workers=machine.workers,
    )
    if fabric.is_global_zero:
        save_weights(network, out / task.graph / WEIGHTS)
    return fabric


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes a state dict under a temporary name first, so that a kill leaves no half file."""
    partial = path.with_name(path.name + ".part")
    torch.save(network.state_dict(), partial)
    os.replace(partial, path)


def write_run(
    out: Path,
    config: TrainConfig,
    code: str,
    data: list[dict[str, str]],
    fabric: Fabric,
    digests: dict[str, str],
    start: dict[str, Any] | None,
    adversarial: bool = False,
) -> None:
    """Records what made the weights: configuration, data, start, code, machine, seconds of each graph of `digests`."""
    before = json.loads((out / RUN).read_text(encoding="utf-8")) if (out / RUN).exists() else {}
    seconds = dict(before.get("seconds", {}))
    for graph, digest in digests.items():
        if state := load_checkpoint(out / graph, digest):
            seconds[graph] = round(state["seconds"])
    record = {
        "config": dataclasses.asdict(config),
        "commit": code,
        "data": data,
        "start": start,
        "seconds": seconds,
        "processes": fabric.world_size,
        "device": str(fabric.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **({"adversarial": True} if adversarial else {}),
    }
    partial = out / (RUN + ".part")
    partial.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, out / RUN)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="medrestore train", description=__doc__, epilog="medrestore train superresolve --help: its own options"
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument(
        "--config", default="denoise", help="a TOML file, or the name of a shipped one; default: denoise"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that the sources' folders lie in")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a second call resumes it")
    parser.add_argument("--graph", action="append", help="train this graph alone (estimate or restore)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides the configuration")
    parser.add_argument("--devices", type=int, default=1, help="processes or GPUs on this machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines that train together")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a process; 0 leaves it to PyTorch")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore train`; returns the exit status."""
    if argv[:1] == ["superresolve"]:
        from training.superresolution import command

        return command.main(argv[1:])
    options = parse(argv)
    name = options.config
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    config = read_config(path, tuple(options.set))
    if config.task != options.task:
        raise ValueError(f"{path.name} is a configuration for {config.task}, not {options.task}")
    graphs = options.graph or list(config.fits)
    if unknown := set(graphs) - set(config.fits):
        raise ValueError(f"--graph {unknown.pop()}: this configuration has {', '.join(config.fits)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    train(options, config, graphs)
    return 0
