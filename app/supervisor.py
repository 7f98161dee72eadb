"""Keeps one device served: starts its worker process, restarts it with back-off, puts another in its place."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.channel import Array, Arrays
from app.errors import BackendUnavailable, RunFailed
from app.handle import Handle, Patience
from app.log import event, places
from app.workers import Model, WorkerDeathError

FAILED_STARTS = 3  # in a row; from then on the worker counts as failed, though it is still tried


@dataclass(frozen=True)
class WorkerStatus:
    """One worker, as readiness and metrics show it."""

    device: str
    state: str  # "starting", "idle", "busy", "restarting", "failed" or "stopped"
    pid: int | None
    restarts: int
    detail: str  # why it died last or failed, else ""


Fill = Callable[[Handle], Awaitable[object]]
Turn = Callable[["Supervisor"], Awaitable[None]]


class Supervisor:
    """One worker. All methods belong to the event loop."""

    def __init__(self, device: str, threads: int | None, patience: Patience, changed: Callable[[], None]) -> None:
        self.device = device
        self.state = "starting"
        self.detail = ""
        self.restarts = 0
        self._threads = threads
        self._patience = patience
        self._changed = changed  # called when the state changes or the process dies
        self._handle: Handle | None = None
        self._successor: Handle | None = None
        self._failed_starts = 0
        self._was_warm = False

    @property
    def status(self) -> WorkerStatus:
        pid = self._handle.pid if self._handle else None
        return WorkerStatus(self.device, self.state, pid, self.restarts, self.detail)

    @property
    def usable(self) -> bool:
        """True while it works, or has worked and is being restarted."""
        return self.state in ("idle", "busy") or (self.state == "restarting" and self._was_warm)

    @property
    def loaded(self) -> Mapping[Model, int]:
        """What the process holds, and how many items a run of it may have."""
        return self._handle.loaded if self._handle else {}

    @property
    def dead(self) -> bool:
        """Whether the process ended by itself."""
        return self._handle is not None and self._handle.dead

    @property
    def replaced(self) -> bool:
        """Whether another process waits to take its place: a turn is to end then."""
        return self._successor is not None

    @property
    def handle(self) -> Handle:
        """The process that works now."""
        assert self._handle is not None
        return self._handle

    async def supervise(self, warm_up: Fill, turn: Turn, restarted: Callable[[str], None]) -> None:
        """Runs until cancelled: starts the process, warms it up the first time, then takes turns at the work.

        A death (WorkerDeathError) in any of these restarts it, and so does any other error;
        BackendUnavailable from `warm_up` ends it for good.
        """
        delay = self._patience.restart_s
        while True:
            try:
                if not await self._take_successor():
                    self._handle = self._new()
                    await self._handle.start()
                    if not self._was_warm:  # else what is asked for is loaded first
                        await warm_up(self._handle)
                self._was_warm = True
                self._enter("idle")
                while True:
                    await turn(self)
                    await self._take_successor()
                    self._failed_starts, delay = 0, self._patience.restart_s
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
            self._failed_starts += 1
            self.restarts += 1
            self._enter("failed" if self._failed_starts >= FAILED_STARTS else "restarting", reason)
            restarted(self.device)
            await self._end()
            await asyncio.sleep(delay)
            delay = min(2 * delay, self._patience.restart_max_s)

    async def prepare(self, fill: Fill) -> Handle:
        """Another process for the device, filled while the one that works goes on.

        Raises what `fill` raises, WorkerDeathError included; nothing is left running then.
        """
        handle = self._new()
        try:
            await handle.start()
            await fill(handle)
        except BaseException:
            await handle.stop()
            raise
        return handle

    async def succeed(self, handle: Handle) -> None:
        """Has a prepared process take over when the batch that runs now is done."""
        before, self._successor = self._successor, handle
        self._changed()
        if before is not None:
            await before.stop()

    async def run(self, model: Model, graph: str, items: Sequence[Arrays]) -> tuple[list[dict[str, Array]], float]:
        """Each item's outputs, and the seconds that the run took. Raises RunFailed, WorkerDeathError."""
        self._enter("busy")
        try:
            answer = await self.handle.run(model, graph, items)
        except RunFailed:
            self._enter("idle")
            raise
        self._enter("idle")
        return answer

    async def stop(self) -> None:
        """Ends its processes, a busy one at once."""
        await self._end()
        if self._successor is not None:
            await self._successor.stop()
        self.state = "stopped"

    def _new(self) -> Handle:
        return Handle(self.device, self._threads, self._patience, self._changed)

    async def _take_successor(self) -> bool:
        """Puts the prepared process in the place of the present one; false where there is none that lives."""
        successor, self._successor = self._successor, None
        if successor is None or successor.dead:
            if successor is not None:
                await successor.stop()
                self._changed()
            return False
        before, self._handle = self._handle, successor
        self._changed()
        if before is not None:
            await before.stop()
        return True

    async def _end(self) -> None:
        handle, self._handle = self._handle, None
        try:
            if handle is not None:
                await handle.stop()
        except Exception as exc:  # noqa: BLE001 (a new process must be started whatever became of the old one)
            event("worker not ended", logging.ERROR, device=self.device, **places(exc))

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
