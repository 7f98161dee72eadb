"""What every fit says of its course, whoever plays: steps, samples, rates, averaging, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long and how fast a network learns."""

    steps: int = 1000
    batch: int = 16  # over all processes together
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-6
    warmup: int = 200  # steps of linear rise
    hold: int = 0  # steps at the full rate before the cosine: a held run can be ended, or prolonged, anywhere
    gradient_norm: float = 1.0  # gradients are scaled down to this norm
    ema: float = 0.999  # decay of the averaged weights, which are what is exported
    precision: str = "bf16-mixed"  # or "32-true"

    def __post_init__(self) -> None:
        if self.precision not in ("bf16-mixed", "32-true"):
            raise ValueError(f"precision: {self.precision!r} is neither bf16-mixed nor 32-true")
        if self.steps < 1 or self.batch < 1 or not 0 <= self.ema < 1:
            raise ValueError("fit: steps >= 1, batch >= 1 and 0 <= ema < 1 are needed")
        if self.hold < 0:
            raise ValueError(f"hold: {self.hold} must not be negative")


def learning_rate(course: Course, step: int) -> float:
    """Linear warm-up, the full rate for `hold` steps, then half a cosine down to `final_learning_rate`."""
    if step < course.warmup:
        return course.learning_rate * (step + 1) / course.warmup
    first = course.warmup + course.hold
    progress = max(0, step - first) / max(1, course.steps - first)
    swing = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return course.final_learning_rate + (course.learning_rate - course.final_learning_rate) * swing
