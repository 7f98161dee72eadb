"""Muon: momentum whose every matrix is made orthogonal before it is applied (Jordan et al., 2024).

For the 3x3 convolutions of our denoisers it reaches in 400 steps what AdamW reaches in 2,000; the
extra work is a few products of small matrices per layer. Matrices at the rim of a network (first
and last layer), biases and gains stay with AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic whose iteration drives singular values towards 1
ITERATIONS = 5
MOMENTUM = 0.95
BETAS = (0.9, 0.999)
ADAM_SHARE = 0.5  # AdamW's learning rate, relative to Muon's


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix (m, n) with singular values of about 1 (0.7 to 1.2), by Newton-Schulz iteration.

    In float32: bfloat16, as published, would turn the last bit of a gradient into the third digit of a step, and two
    processes would part from one.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float() / (matrix.float().norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Groups with `muon = True` take orthogonalised momentum, the others AdamW."""

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
        super().__init__(groups, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            update = self.update_hidden if group["muon"] else self.update_other
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    update(weight, weight.grad, group["lr"])
        return loss

    def update_hidden(self, weight: Tensor, gradient: Tensor, rate: float) -> None:
        """Orthogonal step, scaled so that its size per element is that of an AdamW step (Liu et al., 2025)."""
        state = self.state[weight]
        momentum = state.setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        direction = gradient.lerp(momentum, MOMENTUM).flatten(1)
        change = orthogonalise(direction) * (0.2 * math.sqrt(max(direction.shape)))
        weight.add_(change.view_as(weight), alpha=-rate)

    def update_other(self, weight: Tensor, gradient: Tensor, rate: float) -> None:
        """Adam's step (Kingma and Ba, 2015)."""
        state = self.state[weight]
        mean = state.setdefault("mean", torch.zeros_like(weight))
        square = state.setdefault("square", torch.zeros_like(weight))
        state["count"] = count = state.get("count", 0) + 1
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        deviation = (square / (1 - BETAS[1] ** count)).sqrt_().add_(1e-8)
        weight.addcdiv_(mean, deviation, value=-rate / (1 - BETAS[0] ** count))


def is_hidden(name: str, weight: Tensor) -> bool:
    """Whether Muon takes the weight: matrices and convolutions, but for the first and last layer."""
    rim = {"head", "tail"} & set(name.split("."))
    return weight.ndim in (2, 4) and min(weight.shape[:2]) > 4 and not rim


def build_optimizer(network: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer by name; each group's `share` scales the schedule's learning rate."""
    named = [(key, weight) for key, weight in network.named_parameters() if weight.requires_grad]
    if name == "adamw":
        groups = [group([w for _, w in named], learning_rate, 1.0, muon=False)]
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
    hidden = [w for key, w in named if is_hidden(key, w)]
    others = [w for key, w in named if not is_hidden(key, w)]
    groups = [
        group(hidden, learning_rate, 1.0, muon=True),
        group(others, learning_rate, ADAM_SHARE, muon=False),
    ]
    return Muon([g for g in groups if g["params"]], weight_decay=weight_decay)


def group(weights: Iterable[Tensor], learning_rate: float, share: float, *, muon: bool) -> dict[str, Any]:
    return {"params": list(weights), "lr": learning_rate * share, "share": share, "muon": muon}
