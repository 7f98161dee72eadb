"""One noise law per image, learned beside the blind-spot network.

Variance a max(s, 0) + b at signal s, both positive. Two numbers per image cannot describe texture, so what
the network cannot predict is told apart from noise as well as a likelihood allows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from training.data.noise import Plane
from training.pipeline.likelihood import FLOOR

PACE = 10.0  # the logarithms move so much faster than a weight of the network
LOWEST = 1e-9  # of a and of b


class NoiseTable(nn.Module):
    """`forward`: signal (B, 1, H, W) and image numbers (B,) -> noise variance (B, 1, H, W), at least `FLOOR`."""

    initial: Tensor

    def __init__(self, initial: Tensor) -> None:
        """initial: (N, 2), the (a, b) of each image to start from."""
        super().__init__()
        self.register_buffer("initial", initial.float().clamp(min=LOWEST).log())
        self.change = nn.Parameter(torch.zeros(initial.shape))

    def forward(self, signal: Tensor, index: Tensor) -> Tensor:
        a, b = (self.initial + PACE * self.change)[index].exp()[..., None, None, None].unbind(dim=1)
        return (a * signal.clamp(min=0) + b).clamp(min=FLOOR)

    @torch.no_grad()
    def laws(self) -> list[tuple[float, float]]:
        """(a, b) of every image."""
        return [(a, b) for a, b in (self.initial + PACE * self.change).exp().double().tolist()]


def first_guess(plane: Plane, stride: int) -> tuple[float, float]:
    """(a, b) of a plane (H, W) to start from: its level shared equally at its median signal.

    The level is the median absolute response of a second-difference filter over `stride` pixels, which
    removes planes and edges (Immerkaer, 1996, made robust).
    """
    s = stride if min(plane.shape) > 2 * stride else 1
    if min(plane.shape) <= 2 * s:
        return LOWEST, FLOOR
    rows = plane[: -2 * s] - 2 * plane[s:-s] + plane[2 * s :]
    both = rows[:, : -2 * s] - 2 * rows[:, s:-s] + rows[:, 2 * s :]
    moved = np.abs(both[both != 0])  # exact zeros are saturated or padded, not flat
    variance = max(float(1.4826 * np.median(moved)) ** 2 / 36 if moved.size else 0.0, FLOOR)
    return 0.5 * variance / max(float(np.median(plane)), 0.1), 0.5 * variance


def likeliest_law(
    residual: Tensor, mean: Tensor, model_variance: Tensor, start: tuple[float, float], most: int = 65536
) -> tuple[float, float]:
    """(a, b) of greatest exact likelihood for an image that is not in the table.

    residual, mean, model_variance: one shape; at most about `most` of their elements are looked at, evenly spread.
    """
    step = max(1, residual.numel() // most)
    r2, s, vm = (x.detach().double().cpu().flatten()[::step] for x in (residual**2, mean.clamp(min=0), model_variance))
    logs = torch.tensor(start, dtype=torch.float64).clamp(min=LOWEST).log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        a, b = logs.clamp(-25, 5).exp()
        total = vm + (a * s + b).clamp(min=FLOOR)
        value = (r2 / total + total.log()).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    a, b = logs.detach().clamp(-25, 5).exp().tolist()
    return a, b
