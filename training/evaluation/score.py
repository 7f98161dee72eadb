"""PSNR and SSIM of an answer, and a file that keeps those of the slow comparators."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from training.comparator.denoiser import COMPARATORS
from training.data.noise import Plane
from training.evaluation.case import Case
from training.metric import psnr, ssim
from training.restorer import Restorer

Scores = list[float]  # [PSNR, SSIM]


def score(answer: Plane, clean: Plane) -> Scores:
    """[PSNR, SSIM] of an answer clipped to [0, 1]."""
    shown = np.clip(answer, 0, 1)
    return [psnr(shown, clean), ssim(shown, clean)]


def restored_score(restorer: Restorer, case: Case, *, told: bool = False) -> Scores:
    """A restorer's score on a case, blind or told the true law."""
    law = case.noise.law if told else None
    return score(restorer.restore(case.noisy, eight_bit=case.noise.clipped, law=law), case.clean)


class Comparisons:
    """Scores of the comparators by content of the case; they take minutes and never change.

    The file holds one JSON line per score and is only ever added to, so that several processes may
    share it and a killed one spoils nothing but its last line.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, Scores] = {}
        if path and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self.read(line)

    def read(self, line: str) -> None:
        with contextlib.suppress(ValueError):  # a line that was cut off by a kill
            key, found = json.loads(line)
            self.known[key] = found

    def remembered(self, key: str, compute: Callable[[], list[float]]) -> list[float]:
        """The numbers kept under a key that says all they depend on, computed the first time."""
        if key not in self.known:
            self.known[key] = compute()
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]

    def scores(self, method: str, case: Case) -> Scores:
        """[PSNR, SSIM] of a method of `COMPARATORS`, told the case's level and colour."""
        return self.remembered(f"{method}:{case.key}", lambda: score(compare(method, case), case.clean))


def compare(method: str, case: Case) -> Plane:
    """What a method of `COMPARATORS` makes of a case, told its level and colour."""
    return COMPARATORS[method](case.noisy, case.sigma, case.noise.law.kernel)
