"""The training loop: one network, one dataset, resumable to the bit.

Lightning Fabric brings devices, processes and precision; the loop itself stays in sight.
"""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from training.checkpoint import load_checkpoint, save_checkpoint
from training.course import Course, learning_rate
from training.optimizer import build_optimizer

if TYPE_CHECKING:  # a configuration may name a fit of two players, which stands on this module
    from training.config import Fit

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """What a network learns: a loss per batch, and what to report on held-back images."""

    loss: Callable[[nn.Module, Batch], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]


class Numbered(Sampler[int]):
    """This process's share of the samples, in order, from `first_step` on."""

    def __init__(self, fit: Course, first_step: int, rank: int, processes: int) -> None:
        self.fit, self.first_step, self.rank, self.processes = fit, first_step, rank, processes

    def __iter__(self) -> Iterator[int]:
        yield from range(self.first_step * self.fit.batch + self.rank, self.fit.steps * self.fit.batch, self.processes)

    def __len__(self) -> int:
        return (self.fit.steps - self.first_step) * self.fit.batch // self.processes


def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights; young runs are averaged over fewer steps."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, new in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(new.to(kept), rate)
        for kept, new in zip(average.buffers(), network.buffers(), strict=True):
            kept.copy_(new)


def anneal(network: nn.Module, progress: float) -> None:
    """Tells every module that cools down as it trains (dynamic convolution) how far the run is, 0 to 1."""
    for module in network.modules():
        if callable(cool := getattr(module, "anneal", None)):
            cool(progress)


class Log:
    """A CSV file of numbers per step; a resumed run drops what came after its checkpoint."""

    COLUMNS = ("step", "key", "value")

    def __init__(self, path: Path, first_step: int) -> None:
        rows = []
        if path.exists():
            with path.open(newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if int(row["step"]) <= first_step]
        self.path = path
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a", newline="") as stream:
            csv.writer(stream).writerows((step, key, repr(value)) for key, value in values.items())


@dataclass
class Run:
    """State of one training run."""

    fabric: Fabric
    fit: Fit
    network: nn.Module  # bare
    wrapped: nn.Module  # as Fabric set it up: what is called
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def state(self, config_digest: str) -> dict[str, Any]:
        return {
            "config": config_digest,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def load_batches(dataset: Dataset[Batch], fit: Course, first_step: int, fabric: Fabric, workers: int) -> Any:
    """This process's batches from `first_step` on, on its device."""
    processes = fabric.world_size
    if fit.batch % processes:
        raise ValueError(f"batch: {fit.batch} samples cannot be shared by {processes} processes")
    sampler = Numbered(fit, first_step, fabric.global_rank, processes)
    loader = DataLoader(dataset, batch_size=fit.batch // processes, sampler=sampler, num_workers=workers)
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


def prepare(network: nn.Module, fit: Fit, fabric: Fabric, saved: dict[str, Any] | None) -> Run:
    """A run at its first step, or where the saved state left it."""
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).eval().to(fabric.device)
    optimizer = build_optimizer(network, fit.optimizer, fit.learning_rate, fit.weight_decay)
    wrapped, optimizer = fabric.setup(network, optimizer)
    run = Run(fabric, fit, network, wrapped, average, optimizer)
    if saved:
        run.restore(saved)  # after the set-up, which moves the weights to their device
    return run


def fit_network(
    network: nn.Module,
    dataset: Dataset[Batch],
    objective: Objective,
    fit: Fit,
    folder: Path,
    config_digest: str,
    *,
    fabric: Fabric,
    checkpoint_every: int,
    validate_every: int,
    workers: int = 1,
) -> nn.Module:
    """Trains to `fit.steps` steps, from the checkpoint in `folder` if there is one.

    Returns the averaged network in float32 and evaluation mode. Interrupted at any moment, a second
    call loses at most `checkpoint_every` steps and ends with the same weights.
    """
    run = prepare(network, fit, fabric, load_checkpoint(folder, config_digest))
    folder.mkdir(parents=True, exist_ok=True)
    first = fabric.is_global_zero
    log = Log(folder / "log.csv", run.step) if first else None
    started = time.monotonic() - run.seconds
    with tqdm(total=fit.steps, initial=run.step, desc=folder.name, disable=not first, mininterval=2) as bar:
        for batch in load_batches(dataset, fit, run.step, fabric, workers):
            loss = train_step(run, objective, batch)
            run.seconds = time.monotonic() - started
            bar.update()
            last = run.step == fit.steps
            report = run.step % 100 == 0 or last
            value = float(fabric.all_reduce(loss, reduce_op="mean")) if report else 0.0  # a call of all processes
            if log is None:
                continue
            if report:
                bar.set_postfix(loss=f"{value:.4f}")
                log.write(run.step, {"loss": value, "seconds": run.seconds})
            if run.step % validate_every == 0 or last:
                scores = objective.validate(run.average)
                log.write(run.step, scores)
                bar.write(f"step {run.step}: " + ", ".join(f"{key} {score:.3f}" for key, score in scores.items()))
            if run.step % checkpoint_every == 0 or last:
                save_checkpoint(folder, run.state(config_digest))
    return run.average


def train_step(run: Run, objective: Objective, batch: Batch) -> Tensor:
    """One update of the weights and of their average; returns this process's loss."""
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.fit, run.step) * group["share"]
    anneal(run.network, run.step / run.fit.steps)
    loss = objective.loss(run.wrapped, batch)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()} at step {run.step}; lower the learning rate")
    run.fabric.backward(loss)
    run.fabric.clip_gradients(run.wrapped, run.optimizer, max_norm=run.fit.gradient_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    update_average(run.average, run.network, run.fit.ema, run.step)
    run.step += 1
    return loss.detach()
