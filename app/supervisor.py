"""Keeps one worker process alive: starts it, restarts it with back-off, ends it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from app.channel import Array
from app.errors import BackendUnavailable, RunFailed
from app.log import event, places
from app.workers import Done, Load, Model, Request, Run, Unload, WorkerDeathError, WorkerProcess

FAILED_STARTS = 3  # in a row; from then on the worker counts as failed, though it is still tried


@dataclass(frozen=True)
class Patience:
    """How long a worker may take, and how soon it is started again; seconds."""

    load_s: float = 300.0  # for one bundle, self-test included; then it is killed
    answer_s: float = 300.0  # for one batch; then it is killed
    restart_s: float = 0.2  # doubled after each death without an answer between
    restart_max_s: float = 30.0


@dataclass(frozen=True)
class WorkerStatus:
    """One worker, as readiness and metrics show it."""

    device: str
    state: str  # "starting", "idle", "busy", "restarting", "failed" or "stopped"
    pid: int | None
    restarts: int
    detail: str  # why it died last or failed, else ""


T = TypeVar("T")
Turn = Callable[["Supervisor"], Awaitable[None]]


class Supervisor:
    """One worker. All methods belong to the event loop; calls to the process run in one thread."""

    def __init__(self, device: str, threads: int | None, patience: Patience, changed: Callable[[], None]) -> None:
        self.device = device
        self.state = "starting"
        self.detail = ""
        self.restarts = 0
        self.loaded: set[Model] = set()
        self.dead = False
        self._threads = threads
        self._patience = patience
        self._changed = changed  # called when the state changes or the process dies
        self._process: WorkerProcess | None = None
        self._job: Future[Any] | None = None  # what the thread does
        self._watched: int | None = None
        self._failed_starts = 0
        self._was_warm = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"worker {device}")

    @property
    def status(self) -> WorkerStatus:
        pid = self._process.pid if self._process else None
        return WorkerStatus(self.device, self.state, pid, self.restarts, self.detail)

    @property
    def usable(self) -> bool:
        """True while it works, or has worked and is being restarted."""
        return self.state in ("idle", "busy") or (self.state == "restarting" and self._was_warm)

    async def supervise(self, warm_up: Turn, turn: Turn, restarted: Callable[[str], None]) -> None:
        """Runs until cancelled: starts the process, warms it up, then takes turns at the work.

        A death (WorkerDeathError) in any of these restarts it, and so does any other error;
        BackendUnavailable from `warm_up` ends it for good.
        """
        delay = self._patience.restart_s
        while True:
            warm = False
            try:
                await self._begin()
                await warm_up(self)
                warm = self._was_warm = True
                self._failed_starts = 0
                self._enter("idle")
                while True:
                    await turn(self)
                    delay = self._patience.restart_s
            except BackendUnavailable as exc:
                await self._end()
                self._enter("failed", str(exc))
                return
            except Exception as exc:  # noqa: BLE001 (whatever it was, a new process may do better)
                died = isinstance(exc, WorkerDeathError)
                reason = str(exc) if died else f"{type(exc).__name__}: {exc}"
                event(
                    "worker died", logging.WARNING, device=self.device, **({"reason": reason} if died else places(exc))
                )
            self._failed_starts += not warm
            self.restarts += 1
            self._enter("failed" if self._failed_starts >= FAILED_STARTS else "restarting", reason)
            restarted(self.device)
            await self._end()
            await asyncio.sleep(delay)
            delay = min(2 * delay, self._patience.restart_max_s)

    async def once(self, work: Turn) -> None:
        """Starts the process for `work` alone and ends it. Raises what `work` raises, WorkerDeathError included."""
        try:
            await self._begin()
            await work(self)
        finally:
            await self.stop()

    async def load(self, model: Model, folder: Path, backend: str) -> None:
        """Loads and self-tests. Raises BundleInvalid, BackendUnavailable, WorkerDeathError."""
        await self._call(Load(model, folder, backend), {}, self._patience.load_s)
        self.loaded.add(model)

    async def unload(self, model: Model) -> None:
        """Frees what `load` took. Raises WorkerDeathError."""
        self.loaded.discard(model)
        await self._call(Unload(model), {}, self._patience.answer_s)

    async def run(self, model: Model, graph: str, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """Outputs, and the seconds that the run took. Raises RunFailed, WorkerDeathError."""
        self._enter("busy")
        try:
            reply, outputs = await self._call(Run(model, graph), arrays, self._patience.answer_s)
        except RunFailed:
            self._enter("idle")
            raise
        self._enter("idle")
        assert isinstance(reply, Done)
        return outputs, reply.run_s

    async def stop(self) -> None:
        """Ends the process, a busy one at once."""
        if self._process is not None and self._job is not None and not self._job.done():
            self._process.kill()
        await self._end()
        self._executor.shutdown()
        self.state = "stopped"

    async def _begin(self) -> None:
        self.dead, self.loaded = False, set()
        self._process = WorkerProcess(self.device, self._threads)
        await self._in_thread(self._process.start)
        self._watched = self._process.sentinel
        asyncio.get_running_loop().add_reader(self._watched, self._died)

    def _died(self) -> None:
        self._unwatch()
        self.dead = True
        self._changed()

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched)

    async def _end(self) -> None:
        self._unwatch()
        if self._process is not None:
            await self._in_thread(self._process.stop)
            self._process = None

    async def _call(
        self, request: Request, arrays: Mapping[str, Array], limit_s: float
    ) -> tuple[Any, dict[str, Array]]:
        assert self._process is not None
        return await self._in_thread(partial(self._process.call, request, arrays, limit_s))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        self._job = self._executor.submit(function)
        return await asyncio.wrap_future(self._job)

    def _enter(self, state: str, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self._changed()


def cores() -> int:
    """CPU cores this process may use: by affinity, and by the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup version 2, or no quota ("max")
        return count
