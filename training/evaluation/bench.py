"""Every network of one task after an equal training budget.

A network's steps follow from its own speed, measured once, so that all spend the same CPU time. What
was measured is kept with the run, which can be stopped at any moment and goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn

from training.config import Fit, TrainConfig, build
from training.data.crop import CropMixture
from training.data.pair import PairConfig, Pairs
from training.data.source import Source
from training.evaluation.image import HeldBack
from training.evaluation.table import Row, Table
from training.export import Graph, export_onnx, export_torchscript, fold, graph_of, parity
from training.loop import Objective, fit_network, load_batches, prepare, train_step
from training.networks import Entry as Sized
from training.networks import measure

CONFIGS = Path(__file__).parents[1] / "configs"
WARM_UP, TIMED = 2, 5  # steps of the measurement of speed
REPEATS = 5
SIDE = 256  # of the image whose time is told
PLAN, ROW = "plan.json", "row.json"


@dataclass(frozen=True)
class Entry:
    """One network of one small size, and how it is trained."""

    name: str
    network: str  # in models.networks.registry
    options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1.5e-3
    batch: int = 8
    crop: int = 64
    precision: str = "bf16-mixed"


def read_entries(path: Path, names: Iterable[str] = ()) -> list[Entry]:
    """The entries of a file, or those named. Raises ValueError for a name that is not there."""
    entries = [build(Entry, raw, path.name) for raw in tomllib.loads(path.read_text(encoding="utf-8"))["entries"]]
    known = {entry.name: entry for entry in entries}
    if unknown := set(names) - set(known):
        raise ValueError(f"no entry {unknown.pop()!r} in {path.name}; known: {', '.join(known)}")
    return [known[name] for name in names] or entries


def config_of(entry: Entry, base: TrainConfig, steps: int = WARM_UP + TIMED) -> TrainConfig:
    """How one entry is trained for that many steps."""
    fit = Fit(
        network=entry.network,
        options=entry.options,
        steps=steps,
        batch=entry.batch,
        learning_rate=entry.learning_rate,
        warmup=min(200, steps // 10),
        precision=entry.precision,
        pairs=PairConfig(crop=entry.crop, clip_share=0.0),
    )
    return dataclasses.replace(base, restore=fit)


class Bench(ABC):
    """Trains entries on the images of a configuration, each in a folder of its own below `out`."""

    def __init__(self, out: Path, base: TrainConfig, data: Path, minutes: float) -> None:
        self.out, self.base, self.minutes = out, base, minutes
        self.crops = CropMixture([Source(source, data) for source in base.sources])

    @abstractmethod
    def start(self, config: TrainConfig) -> nn.Module:
        """The untrained network, seeded."""

    @abstractmethod
    def pairs(self, config: TrainConfig) -> Pairs:
        """What it learns from."""

    @abstractmethod
    def objective(self, network: nn.Module) -> Objective:
        """What it learns; nothing is validated on the way."""

    @abstractmethod
    def scores(self, trained: nn.Module, images: Sequence[HeldBack]) -> Row:
        """Columns of quality of a trained network, in evaluation mode."""

    def finished(self, network: nn.Module) -> nn.Module:
        """A trained network as it is scored and exported."""
        return network

    def rows(self, entries: Iterable[Entry], images: Sequence[HeldBack]) -> Table:
        """One row per entry, from its file where it was made before."""
        return [self.row(entry, images) for entry in entries]

    def row(self, entry: Entry, images: Sequence[HeldBack]) -> Row:
        folder, digest = self.out / entry.name, self.digest(entry)
        known = read_kept(folder / ROW, digest)
        if known is None:
            trained, steps = self.train(entry, folder, digest)
            row = {"network": entry.name, "steps": steps, "CPU minutes": self.minutes}
            known = row | size_columns(entry) | self.scores(trained, images) | export_columns(self.base, trained)
            keep(folder / ROW, digest, known)
        return known

    def digest(self, entry: Entry) -> str:
        """SHA-256 of what decides the row: another budget or configuration needs another folder."""
        text = json.dumps([dataclasses.asdict(config_of(entry, self.base)), self.minutes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def train(self, entry: Entry, folder: Path, digest: str) -> tuple[nn.Module, int]:
        """The trained network in evaluation mode, and its number of steps."""
        plan = read_kept(folder / PLAN, digest)
        if plan is None:
            seconds = self.seconds_per_step(entry)
            plan = {"seconds_per_step": seconds, "steps": max(1, round(60 * self.minutes / seconds))}
            keep(folder / PLAN, digest, plan)
        config = config_of(entry, self.base, plan["steps"])
        network = self.start(config)
        trained = fit_network(
            network,
            self.pairs(config),
            self.objective(network),
            config.restore,
            folder,
            config.digest("restore"),
            fabric=fabric_of(config),
            checkpoint_every=config.checkpoint_every,
            validate_every=config.restore.steps,
            workers=0,
        )
        return self.finished(trained).eval(), plan["steps"]

    def seconds_per_step(self, entry: Entry) -> float:
        """Median CPU time of a step, samples included, over all threads of the process."""
        config = config_of(entry, self.base)
        network = self.start(config)
        run, objective, seconds = prepare(network, config.restore, fabric_of(config), None), self.objective(network), []
        batches = iter(load_batches(self.pairs(config), config.restore, 0, run.fabric, 0))
        for _ in range(WARM_UP + TIMED):
            started = time.process_time()
            train_step(run, objective, next(batches))
            seconds.append(time.process_time() - started)
        return float(np.median(seconds[WARM_UP:]))


def fabric_of(config: TrainConfig) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision=config.restore.precision)  # type: ignore[arg-type]


def keep(path: Path, digest: str, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"digest": digest, "values": values}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_kept(path: Path, digest: str) -> dict[str, Any] | None:
    """What was kept, or None. Raises ValueError where that belongs to another configuration or budget."""
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["digest"] != digest:
        raise ValueError(f"{path.parent.name}: {path.name} is of another configuration or budget; use another --out")
    values: dict[str, Any] = record["values"]
    return values


def size_columns(entry: Entry) -> Row:
    size = measure(Sized(entry.network, entry.options))
    return {"parameters": size.parameters, "GMAC at 256x256": size.gmacs}


def export_columns(base: TrainConfig, trained: nn.Module) -> Row:
    """Largest difference of each export from eager, or why there is none; seconds of ONNX Runtime on one image."""
    graph, row = graph_of(base.task, "restore", fold(trained)), Row()
    with tempfile.TemporaryDirectory() as folder:
        for format, write in (("onnx", export_onnx), ("torchscript", export_torchscript)):
            path = Path(folder) / format
            try:
                write(graph, path)
                row[f"{format} parity"] = parity(graph, format, path)
            except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
                row[f"{format} parity"] = f"failed: {str(error).splitlines()[0]}"
        if isinstance(row["onnx parity"], float):
            row["seconds per image"] = seconds_per_image(graph, Path(folder) / "onnx")
    return row


def seconds_per_image(graph: Graph, path: Path) -> float:
    """Median CPU time of ONNX Runtime with one thread on one 256x256 image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    arrays, seconds = graph.example(1, SIDE, SIDE), []
    for _ in range(1 + REPEATS):
        started = time.process_time()
        session.run(None, arrays)
        seconds.append(time.process_time() - started)
    return float(np.median(seconds[1:]))
