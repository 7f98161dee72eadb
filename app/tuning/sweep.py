"""Times a bundle's network on this machine: every runtime, precision, number of threads, tile and batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from app.backends.base import MODULES, Backend, golden_inputs, load, same_together, self_test
from app.batching import EngineConfig
from app.errors import BackendUnavailable
from models.bundle import Bundle
from models.errors import BundleInvalid

Array = np.ndarray[Any, Any]

BATCHES = (1, 2, 4)
ROUNDS = 5
HOPELESS = 2.0
ENOUGH_S = 2.0  # of one row's rounds; slow ones are timed less often, at least twice


@dataclass(frozen=True)
class Way:
    """One way to run a network."""

    backend: str
    precision: str
    threads: int


@dataclass(frozen=True)
class Load:
    """What one run is given."""

    tile: tuple[int, int]
    batch: int

    @property
    def pixels(self) -> int:
        return self.tile[0] * self.tile[1] * self.batch


@dataclass(frozen=True)
class Timing:
    """Median and spread of one way with one load; `equal` where each item came out as it does alone."""

    way: Way
    load: Load
    seconds: float
    fastest: float
    slowest: float
    equal: bool

    @property
    def pixels_per_second(self) -> float:
        return self.load.pixels / self.seconds


@dataclass
class Sweep:
    """All timings of one bundle, and what was left out and why."""

    bundle: Bundle
    timings: list[Timing] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def sweep(bundle: Bundle, threads: tuple[int, ...], seconds: float) -> tuple[Sweep, dict[Way, Backend]]:
    """Times the `restore` graph until `seconds` are spent, smallest load first; the first is always done.

    Ways take turns in every round, so that what else the machine does falls on each alike.
    """
    result = Sweep(bundle)
    ways = kept = _load_all(bundle, threads, result)
    start = time.perf_counter()
    for count, work in enumerate(_loads(bundle)):
        if count and time.perf_counter() - start > seconds:
            result.left_out[f"{work.tile[0]} x {work.tile[1]}, batch {work.batch}"] = "the time was spent"
            continue
        result.timings += (latest := list(_time(kept, work, bundle)))
        kept = {way: kept[way] for way in _promising(latest)}
    return result, ways


def _promising(timings: list[Timing]) -> list[Way]:
    """Ways worth another load: those less than `HOPELESS` times slower than the best of their precision."""
    best = {t.way.precision: min(u.seconds for u in timings if u.way.precision == t.way.precision) for t in timings}
    return [t.way for t in timings if t.seconds < HOPELESS * best[t.way.precision]]


def _load_all(bundle: Bundle, threads: tuple[int, ...], result: Sweep) -> dict[Way, Backend]:
    ways = {}
    for name, precision, count in product(MODULES, bundle.manifest.precisions, threads):
        try:
            backend = load(name, bundle, "cpu", precision, count)
            self_test(backend, bundle)
        except (BackendUnavailable, BundleInvalid) as reason:
            result.left_out[f"{name} {precision}"] = str(reason)
        else:
            ways[Way(name, precision, count)] = backend
    return ways


def _loads(bundle: Bundle) -> list[Load]:
    loads = [Load(tile, batch) for tile, batch in product(bundle.manifest.tiles, BATCHES)]
    return sorted(
        (w for w in loads if w.batch == 1 or w.pixels <= EngineConfig.batch_pixels), key=lambda w: (w.pixels, w.batch)
    )


def _time(ways: Mapping[Way, Backend], work: Load, bundle: Bundle) -> Iterator[Timing]:
    batch = inputs_for(bundle, work)
    equal = {way: _equals_alone(backend, batch) for way, backend in ways.items()}  # warms up, too
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for index in range(ROUNDS):
        for way, backend in ways.items():
            if index > 1 and sum(taken[way]) > ENOUGH_S:
                continue
            start = time.perf_counter()
            backend.run("restore", batch)
            taken[way].append(time.perf_counter() - start)
    for way, times in taken.items():
        yield Timing(way, work, statistics.median(times), min(times), max(times), equal[way])


def inputs_for(bundle: Bundle, work: Load) -> dict[str, Array]:
    """Noise of the wanted shape, and for every other input what the golden file gives to `restore`."""
    golden = golden_inputs(bundle)["restore"]
    rest = {name: np.repeat(value[:1], work.batch, 0) for name, value in golden.items() if name != "image"}
    image = np.random.default_rng(0).uniform(0, 1, (work.batch, 1, *work.tile)).astype(np.float32)
    return {"image": image, **rest}


def _equals_alone(backend: Backend, batch: Mapping[str, Array]) -> bool:
    """Whether a batch gives each item bit for bit what it gets alone, and the same again."""
    items = [{name: array[i : i + 1] for name, array in batch.items()} for i in range(len(batch["image"]))]
    alone = [backend.run("restore", item) for item in items]
    return all(same_together(backend, "restore", items, alone) for _ in range(2))
