"""An engine over workers that follow a script in place of a process: quick, and able to fail on demand."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from app.batching import Engine, EngineConfig, EngineObserver, Patience, WorkItem
from app.catalogue import Catalogue
from app.errors import BackendUnavailable, RunFailed
from app.workers import Done, Load, Loaded, Run, WorkerDeathError
from models.errors import MedRestoreError

GOOD, BAD, DEADLY = 0.0, 1.0, 2.0  # first pixel of an image: what the scripted worker does with it
FAST = Patience(answer_s=10, restart_s=0.001, restart_max_s=0.002)


@dataclass
class Script:
    """What scripted workers do, and what they were asked."""

    runs: list[list[float]] = field(default_factory=list)  # the tags of each run's items
    loads: list[str] = field(default_factory=list)
    starts: int = 0
    batch_items: int = 99  # that keep their bytes in company
    gate: threading.Event = field(default_factory=threading.Event)  # a run waits for it
    on_load: Callable[[Load], None] = lambda request: None
    lacking: set[tuple[str, str]] = field(default_factory=set)  # device and precision that it has no runtime for
    on_start: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.gate.set()


class ScriptedProcess:
    """Stands in for `WorkerProcess`: same methods, no process. The tag of an item is its second pixel."""

    def __init__(self, script: Script, device: str) -> None:
        self.script = script
        self.device = device
        self.pid: int | None = None
        self.sentinel, self._end = os.pipe()

    def start(self) -> None:
        self.script.starts += 1
        self.pid = 1
        self.script.on_start()

    def call(self, request, items, timeout_s):
        if isinstance(request, Load):
            self.script.loads.append(request.model.precision)
            self.script.on_load(request)
            if (self.device, request.model.precision) in self.script.lacking:
                raise BackendUnavailable(f"no {request.model.precision} on {self.device}")
            return Loaded(min(request.batch_items, self.script.batch_items)), []
        assert isinstance(request, Run)
        images = [item["image"] for item in items]
        self.script.runs.append([float(image[0, 0, 0, 1]) for image in images])
        assert self.script.gate.wait(10)
        kinds = {float(image[0, 0, 0, 0]) for image in images}
        if DEADLY in kinds:
            raise WorkerDeathError("scripted")
        if BAD in kinds:
            raise RunFailed("scripted")
        return Done(0.01), [{"restored": image + 1} for image in images]

    def send(self, request, items) -> None:
        """Begins a call in a thread; `fileno` turns readable at its end."""
        self._ready, ready = os.pipe()

        def call() -> None:
            try:
                self._answer = self.call(request, items, None)
            except (MedRestoreError, WorkerDeathError, KeyError) as exc:
                self._answer = exc
            os.close(ready)

        self._thread = threading.Thread(target=call)
        self._thread.start()

    def fileno(self) -> int:
        return self._ready

    def receive(self, count: int):
        self._thread.join()
        os.close(self._ready)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def kill(self) -> None:
        self.script.gate.set()

    def stop(self) -> None:
        if self.pid is not None:
            self.pid = None
            os.close(self.sentinel)
            os.close(self._end)


class Recorder(EngineObserver):
    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.shed_reasons: list[str] = []
        self.batches: list[int] = []
        self.restarts = 0
        self.changes: list[str] = []

    def shed(self, reason: str) -> None:
        self.shed_reasons.append(reason)

    def batch_ran(self, device: str, items: int, pixels: int, fill: float, run_s: float) -> None:
        self.batches.append(items)

    def finished(self, item: WorkItem, outcome: str, queue_s: float, run_s: float) -> None:
        self.outcomes[outcome] += 1

    def models_changed(self, change: str) -> None:
        self.changes.append(change)

    def worker_restarted(self, device: str) -> None:
        self.restarts += 1


class Bench:
    """A started engine over the tiny bundles, with short ways to ask it."""

    def __init__(self, repository: Path, **config) -> None:
        self.catalogue = Catalogue(repository)
        self.digest = self.catalogue.lookup("tiny-x2", "superresolve", 2).digest
        self.recorder = Recorder()
        self.engine = Engine(
            self.catalogue, EngineConfig(**({"patience": FAST, "batch_items": {"fp32": 1}} | config)), self.recorder
        )

    async def __aenter__(self) -> Bench:
        await self.engine.start()
        await self.engine.wait_ready(10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()
        assert self.engine.queued_items == self.engine.queued_pixels == self.engine.running_items == 0
        assert self.engine._room.used.items == 0

    def item(self, tag: float = 0.0, kind: float = GOOD, side: int = 16, **options) -> WorkItem:
        image = np.zeros((1, 1, side, side), np.float32)
        image[0, 0, 0, :2] = kind, tag
        return WorkItem(options.pop("digest", self.digest), "restore", {"image": image}, **options)

    def submit(self, *tags: float, **options) -> list[asyncio.Task]:
        return [asyncio.create_task(self.engine.submit(self.item(tag, **options))) for tag in tags]


async def until(condition: Callable[[], bool]) -> None:
    """Waits, ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
