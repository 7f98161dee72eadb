"""The training loop of two players: a generator and its critic, resumable to the bit.

The twin of `training.loop`: same samples, log, schedule, averaging and checkpoints. All that is random must come with
the batch, or a resumed duel would see other draws than an unbroken one.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from training.checkpoint import load_checkpoint, save_checkpoint
from training.course import Course, learning_rate
from training.loop import Batch, Log, anneal, load_batches, update_average

Scores = dict[str, float]


@dataclass(frozen=True)
class Rules:
    """What each player wants. The one that does not learn is frozen meanwhile; both return float32."""

    critic_loss: Callable[[nn.Module, nn.Module, Batch], Tensor]  # of (generator, critic, batch)
    generator_terms: Callable[[nn.Module, nn.Module, Batch], dict[str, Tensor]]  # weighted: their sum is the loss
    validate: Callable[[nn.Module], Scores]  # of the averaged generator; the critic rests in evaluation mode


@dataclass(frozen=True, kw_only=True)
class DuelFit(Course):
    """How two players learn, both with Adam. The rates of `Course` are the generator's; the critic keeps its share."""

    learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 50
    head_start: int = 0  # first steps, in which the critic learns alone
    critic_every: int = 1  # the critic moves every so many steps
    gradients_every: int = 100  # steps between two records of every term's gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate <= 0 or self.critic_learning_rate <= 0:
            raise ValueError("duel: learning_rate and critic_learning_rate must be positive")
        if not 0 <= self.head_start < self.steps:
            raise ValueError(f"duel: head_start {self.head_start} must be shorter than the {self.steps} steps")
        if self.critic_every < 1 or self.gradients_every < 1:
            raise ValueError("duel: critic_every and gradients_every must be at least 1")

    def generator_rate(self, step: int) -> float:
        """The generator's learning rate; its warm-up begins after the head start."""
        return learning_rate(dataclasses.replace(self, steps=self.steps - self.head_start, head_start=0), step)

    def critic_rate(self, step: int) -> float:
        """The critic's learning rate: the same course, scaled."""
        return learning_rate(self, step) * self.critic_learning_rate / self.learning_rate


class Called(nn.Module):
    """Calls a network in the precision of the run; the tensor, or tuple of them, that comes out is float32.

    Fabric's own wrapper would do, were it not for what a duel needs: gradients of a part of the graph, and a network
    that is called twice before its step.
    """

    def __init__(self, network: nn.Module, fabric: Fabric) -> None:
        super().__init__()
        self.network, self.fabric = network, fabric

    def forward(self, *arguments: Any) -> Any:
        with self.fabric.autocast():
            found = self.network(*arguments)
        return tuple(each.float() for each in found) if isinstance(found, tuple) else found.float()


class Player:
    """One network of a duel, and how it moves."""

    def __init__(self, network: nn.Module, rate: float, betas: tuple[float, float], fabric: Fabric) -> None:
        self.network = fabric.to_device(network.train()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.called = Called(self.network, fabric)
        self.weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(self.weights, lr=rate, betas=betas)
        self.fabric = fabric

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keeps gradients from this player's weights, not from what passes through them."""
        for weight in self.weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in self.weights:
                weight.requires_grad_(True)

    def update(self, loss: Tensor, rate: float, gradient_norm: float) -> None:
        """One step of the optimizer down this loss, by the mean gradient of all processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.share_gradients()
        nn.utils.clip_grad_norm_(self.weights, gradient_norm, error_if_nonfinite=True)
        self.optimizer.step()

    def share_gradients(self) -> None:
        """Averages the gradients over the processes, all in one message."""
        if self.fabric.world_size > 1:
            gradients = [weight.grad for weight in self.weights if weight.grad is not None]
            together = torch.cat([gradient.flatten() for gradient in gradients])
            mean = self.fabric.all_reduce(together, reduce_op="mean")
            assert isinstance(mean, Tensor)
            for gradient, part in zip(gradients, torch.split(mean, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view(gradient.shape))


@dataclass
class Duel:
    """State of one run."""

    fabric: Fabric
    fit: DuelFit
    generator: Player
    critic: Player
    average: nn.Module
    step: int = 0
    seconds: float = 0.0
    critic_loss: Tensor | None = None  # of its last move: not every step that is reported has one

    def state(self, config_digest: str) -> dict[str, Any]:
        return {
            "config": config_digest,
            "generator": self.generator.state(),
            "critic": self.critic.state(),
            "critic_loss": self.critic_loss,
            "average": self.average.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.generator.restore(state["generator"])
        self.critic.restore(state["critic"])
        self.average.load_state_dict(state["average"])
        self.step, self.seconds = state["step"], state["seconds"]
        loss = state.get("critic_loss")  # unknown to older checkpoints
        self.critic_loss = None if loss is None else loss.to(self.fabric.device)


def begin_duel(
    generator: nn.Module, critic: nn.Module, fit: DuelFit, fabric: Fabric, saved: dict[str, Any] | None
) -> Duel:
    """A run at its first step, or where the saved state left it."""
    average = copy.deepcopy(generator).eval().to(fabric.device)
    duel = Duel(
        fabric,
        fit,
        Player(generator, fit.learning_rate, fit.betas, fabric),
        Player(critic, fit.critic_learning_rate, fit.betas, fabric),
        average.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    )
    if saved:
        duel.restore(saved)  # after the set-up, which moves the weights to their device
    return duel


def fit_duel(
    generator: nn.Module,
    critic: nn.Module,
    dataset: Dataset[Batch],
    rules: Rules,
    fit: DuelFit,
    folder: Path,
    config_digest: str,
    *,
    fabric: Fabric,
    checkpoint_every: int,
    validate_every: int,
    workers: int = 1,
) -> nn.Module:
    """Trains both to `fit.steps` steps, from the checkpoint in `folder` if there is one.

    Returns the averaged generator in float32 and evaluation mode. Interrupted at any moment, a second
    call loses at most `checkpoint_every` steps and ends with the same weights. `log.csv` holds both losses, every
    term (`loss_TERM`), each `gradients_every` steps the norm of its gradient on the generator (`gradient_TERM`), and
    the scores.
    """
    duel = begin_duel(generator, critic, fit, fabric, load_checkpoint(folder, config_digest))
    folder.mkdir(parents=True, exist_ok=True)
    first = fabric.is_global_zero
    log = Log(folder / "log.csv", duel.step) if first else None
    started = time.monotonic() - duel.seconds
    with tqdm(total=fit.steps, initial=duel.step, desc=folder.name, disable=not first, mininterval=2) as bar:
        for batch in load_batches(dataset, fit, duel.step, fabric, workers):
            values = duel_step(duel, rules, batch)
            duel.seconds = time.monotonic() - started
            bar.update()
            last = duel.step == fit.steps
            scores = averaged(values, fabric)  # a call of all processes
            if log is None:
                continue
            if scores:
                log.write(duel.step, scores | {"seconds": duel.seconds})
            if duel.step % validate_every == 0 or last:
                scores = validate(duel, rules)
                log.write(duel.step, scores)
                bar.write(f"step {duel.step}: " + ", ".join(f"{key} {score:.3f}" for key, score in scores.items()))
            if duel.step % checkpoint_every == 0 or last:
                save_checkpoint(folder, duel.state(config_digest))
    return duel.average


def duel_step(duel: Duel, rules: Rules, batch: Batch) -> dict[str, Tensor]:
    """One move of each player whose turn it is; returns what this process has to report of it, on most steps nothing.

    The critic moves first, against the generator as it stands.
    """
    fit, step = duel.fit, duel.step
    anneal(duel.generator.network, step / fit.steps)
    if step % fit.critic_every == 0 or step < fit.head_start:
        duel.critic_loss = critic_move(duel, rules, batch)
    found = {} if duel.critic_loss is None else {"critic_loss": duel.critic_loss}
    duel.step += 1
    last = duel.step == fit.steps
    if step >= fit.head_start:
        measured = duel.step % fit.gradients_every == 0 or last
        found |= generator_move(duel, rules, batch, step, measured)
        update_average(duel.average, duel.generator.network, fit.ema, step - fit.head_start)
    return found if duel.step % 100 == 0 or duel.step % fit.gradients_every == 0 or last else {}


def critic_move(duel: Duel, rules: Rules, batch: Batch) -> Tensor:
    """One update of the critic; returns its loss."""
    with duel.generator.frozen():
        loss = rules.critic_loss(duel.generator.called, duel.critic.called, batch)
        require_finite(loss, "critic_loss", duel.step)
        duel.critic.update(loss, duel.fit.critic_rate(duel.step), duel.fit.gradient_norm)
    return loss.detach()


def generator_move(duel: Duel, rules: Rules, batch: Batch, step: int, measured: bool) -> dict[str, Tensor]:
    """One update of the generator; returns its loss, every term, and the terms' gradient norms if `measured`."""
    with duel.critic.frozen():
        terms = rules.generator_terms(duel.generator.called, duel.critic.called, batch)
        for name, term in terms.items():
            require_finite(term, name, step)
        loss = torch.stack(list(terms.values())).sum()
        norms = gradient_norms(terms, duel.generator.network) if measured else {}
        rate = duel.fit.generator_rate(step - duel.fit.head_start)
        duel.generator.update(loss, rate, duel.fit.gradient_norm)
    found = {"generator_loss": loss} | named("loss", terms) | named("gradient", norms)
    return {name: value.detach() for name, value in found.items()}


def named(kind: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of each term as the log names them: a score may be called as a term is."""
    return {f"{kind}_{name}": value for name, value in values.items()}


def gradient_norms(terms: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """L2 norm, over all weights that learn, of each term's own gradient; the graph is kept for the step itself."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(squares).sum().sqrt() if squares else term.new_zeros(())
    return norms


def averaged(values: dict[str, Tensor], fabric: Fabric) -> Scores:
    """The mean of each number over all processes."""
    return {name: float(fabric.all_reduce(value, reduce_op="mean")) for name, value in values.items()}  # type: ignore[arg-type]


def validate(duel: Duel, rules: Rules) -> Scores:
    """The scores of the averaged generator."""
    duel.critic.network.eval()
    scores = rules.validate(duel.average)
    duel.critic.network.train()
    return scores


def require_finite(value: Tensor, name: str, step: int) -> None:
    """Raises FloatingPointError where a loss is lost."""
    if not torch.isfinite(value):
        raise FloatingPointError(f"{name} is {value.item()} at step {step}; lower the learning rates")
