"""Chooses settings from what was measured, and tells why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.pipeline import EXACT, FAST
from app.tuning.fidelity import Loss
from app.tuning.sweep import Load, Sweep, Timing, Way

LOSS_DB = 0.01  # PSNR that a fast mode may cost
GAIN = 1.05  # by which another way must be faster before it replaces the default
NO_FAST = "onnx"  # a runtime without bf16: fast mode then is exact mode


@dataclass
class Choice:
    """Settings by field name, and the reason of each that needs one."""

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def choose(sweeps: Sequence[Sweep], losses: Mapping[tuple[str, str], Loss]) -> Choice:
    """The fastest exact way; the fastest fast way that loses no more than `LOSS_DB` and beats the exact one.

    `losses` are by backend and bundle reference. Speeds are compared as geometric means of pixels per
    second over the loads and bundles that all ways did; one bundle that a way cannot run rules it out.
    """
    result = Choice()
    speeds = _speeds(sweeps)
    exact = _fastest({way: speed for way, speed in speeds.items() if way.precision == EXACT}, result)
    result.settings |= {"backend": exact.backend, "threads": exact.threads}
    result.settings["batch_items_exact"] = _batch(sweeps, exact)
    fast = _fast(speeds, exact, losses, result)
    result.settings["fast_backend"] = fast.backend if fast else NO_FAST
    result.settings["batch_items_fast"] = _batch(sweeps, fast) if fast else 1
    return result


def _speeds(sweeps: Sequence[Sweep]) -> dict[Way, float]:
    """Pixels per second of each way that ran every load of every bundle, one item at a time."""
    tables = [{(t.way, t.load): t for t in sweep.timings if t.load.batch == 1} for sweep in sweeps]
    ways = set.intersection(*({way for way, _ in table} for table in tables))
    done = {way: [t for table in tables for (w, _), t in table.items() if w == way] for way in ways}
    most = max(map(len, done.values()))
    return {
        way: math.exp(_mean([math.log(timing.pixels_per_second) for timing in timings]))
        for way, timings in done.items()
        if len(timings) == most and all(timing.equal for timing in timings)
    }


def _fastest(speeds: Mapping[Way, float], result: Choice) -> Way:
    """The default runtime at its best number of threads, unless another is faster by `GAIN`."""
    best = max(speeds, key=lambda way: speeds[way])
    usual = [way for way in speeds if way.backend == "onnx"]
    default = max(usual, key=lambda way: speeds[way], default=best)
    if speeds[best] >= GAIN * speeds[default]:
        if best.backend != default.backend:
            result.reasons.append(f"exact: {best.backend} is {speeds[best] / speeds[default]:.2f} times as fast")
        return best
    return default


def _fast(
    speeds: Mapping[Way, float], exact: Way, losses: Mapping[tuple[str, str], Loss], result: Choice
) -> Way | None:
    """The fast way with the exact one's threads, which all precisions of a worker share."""
    candidates = {way: speed for way, speed in speeds.items() if way.precision == FAST and way.threads == exact.threads}
    for way in sorted(candidates, key=lambda way: -candidates[way]):
        worst = max((loss.mean_db for (backend, _), loss in losses.items() if backend == way.backend), default=math.inf)
        gain = candidates[way] / speeds[exact]
        told = f"fast: {way.backend} {way.precision} is {gain:.2f} times as fast as exact and loses {worst:.4f} dB"
        if gain >= GAIN and worst <= LOSS_DB:
            result.reasons.append(told)
            return way
        result.reasons.append(f"{told}: not taken")
    result.reasons.append("fast: no faster way is good enough, so fast mode is exact mode")
    return None


def _batch(sweeps: Sequence[Sweep], way: Way) -> int:
    """The largest batch that pays for every bundle on its smallest tile, without a change of any bit."""
    best = 1
    sizes = sorted({t.load.batch for sweep in sweeps for t in sweep.timings})
    for size in sizes[1:]:
        pairs = [_pair(sweep, way, size) for sweep in sweeps]
        if all(pair and _pays(*pair) for pair in pairs):
            best = size
    return best


def _pair(sweep: Sweep, way: Way, size: int) -> tuple[Timing, Timing] | None:
    """The way's timings of a single smallest tile and of `size` of them."""
    tile = min((t.load.tile for t in sweep.timings), key=lambda shape: shape[0] * shape[1])
    found = {t.load: t for t in sweep.timings if t.way == way}
    loads = Load(tile, 1), Load(tile, size)
    return (found[loads[0]], found[loads[1]]) if all(load in found for load in loads) else None


def _pays(alone: Timing, together: Timing) -> bool:
    return together.equal and together.pixels_per_second >= GAIN * alone.pixels_per_second


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
