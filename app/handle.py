"""One worker process as the event loop sees it: started, asked and ended without blocking the loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from app.channel import Array, Arrays
from app.workers import Done, Load, Loaded, Model, Reply, Request, Run, WorkerDeathError, WorkerProcess

T = TypeVar("T")
SMALL = 2**20  # bytes of inputs that are copied at once; more would hold up the event loop


@dataclass(frozen=True)
class Patience:
    """How long a worker may take, and how soon it is started again; seconds."""

    load_s: float = 300.0  # for one bundle, self-test and warm-up included; then it is killed
    answer_s: float = 300.0  # for one batch; then it is killed
    restart_s: float = 0.2  # doubled after each death without an answer between
    restart_max_s: float = 30.0


class Handle:
    """A process from its start to its end; calls to it are made one at a time, long ones in a thread."""

    def __init__(self, device: str, threads: int | None, patience: Patience, died: Callable[[], None]) -> None:
        self.device = device
        self.loaded: dict[Model, int] = {}  # and how many items a run of it may have
        self.dead = False
        self._patience = patience
        self._notify = died  # called once, when the process ends by itself
        self._process = WorkerProcess(device, threads)
        self._job: Future[Any] | None = None  # what the thread does
        self._answer: asyncio.Future[bool] | None = None  # to what was asked without the thread
        self._watched: int | None = None
        self._stopped = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"worker {device}")

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def start(self) -> None:
        """Starts the process, which loads nothing by itself."""
        await self._in_thread(self._process.start)
        self._watched = self._process.sentinel
        asyncio.get_running_loop().add_reader(self._watched, self._died)

    async def load(self, model: Model, folder: Path, backend: str, batch_items: int = 1, batch_pixels: int = 1) -> None:
        """Loads, self-tests and warms up; a run will have at most that many items, and one where more would
        change their bytes. Raises BundleInvalid, BackendUnavailable, WorkerDeathError."""
        request = Load(model, folder, backend, batch_items, batch_pixels)
        reply, _ = await self._in_thread(partial(self._process.call, request, (), self._patience.load_s))
        assert isinstance(reply, Loaded)
        self.loaded[model] = reply.batch_items

    async def run(self, model: Model, graph: str, items: Sequence[Arrays]) -> tuple[list[dict[str, Array]], float]:
        """Each item's outputs, and the seconds that the run took. Raises RunFailed, WorkerDeathError."""
        request, limit_s = Run(model, graph), self._patience.answer_s
        if sum(array.nbytes for item in items for array in item.values()) > SMALL:
            reply, outputs = await self._in_thread(partial(self._process.call, request, items, limit_s))
        else:
            reply, outputs = await self._ask(request, items, limit_s)
        assert isinstance(reply, Done)
        return outputs, reply.run_s

    async def _ask(
        self, request: Request, items: Sequence[Arrays], limit_s: float
    ) -> tuple[Reply, list[dict[str, Array]]]:
        """What `WorkerProcess.call` does, without a thread: to hand a small request over takes longer than it does."""
        loop = asyncio.get_running_loop()
        self._answer = answer = loop.create_future()
        self._process.send(request, items)
        pipe = self._process.fileno()
        loop.add_reader(pipe, _settle, answer, False)
        timer = loop.call_later(limit_s, _settle, answer, True)
        try:
            late = await answer
        finally:
            timer.cancel()
            loop.remove_reader(pipe)
            os.set_blocking(pipe, True)  # uvloop does not leave it so
        if late:
            self._process.kill()
            raise WorkerDeathError(f"killed after {limit_s:.0f} s without an answer")
        return self._process.receive(len(items))

    async def stop(self) -> None:
        """Ends the process, a busy one at once; a second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        self._unwatch()
        asked = self._answer is not None and (self._answer.cancelled() or not self._answer.done())
        if asked or (self._job is not None and not self._job.done()):
            self._process.kill()
        await self._in_thread(self._process.stop)
        self._executor.shutdown()

    def _died(self) -> None:
        self._unwatch()
        self.dead = True
        self._notify()

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        self._job = self._executor.submit(function)
        return await asyncio.wrap_future(self._job)


def _settle(answer: asyncio.Future[bool], late: bool) -> None:
    if not answer.done():
        answer.set_result(late)
