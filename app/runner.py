"""The ways to run a graph: through the engine's queue (service, jobs), or at once (command line)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from app.admission import Admission
from app.backends.base import Array, Backend, lacked_memory
from app.batching import Engine
from app.errors import NotReady, OutOfMemory, QueueFull
from app.tiling import Tiling
from app.tracing import ran
from app.work import Priority, WorkItem

BULK_WAIT_S = 1.0


class EngineRunner:
    """Runs one request's graphs through the queue, `window` of them at most at one time.

    `queue_s` is what the first answer waited (for others: later ones wait for each other), `run_s`
    the sum of what all answers ran; runs on several workers overlap.
    """

    def __init__(
        self,
        engine: Engine,
        digest: str,
        precision: str,
        admission: Admission,
        deadline: float,
        window: int,
        priority: Priority = Priority.INTERACTIVE,
        tiling: Tiling | None = None,
    ) -> None:
        self.backend = "none"
        self.precision = precision
        self.queue_s: float | None = None
        self.run_s = 0.0
        self.admission = admission
        self._engine = engine
        self._digest = digest
        self._deadline = deadline
        self._priority = priority
        self.window = window
        self.tiling = tiling or Tiling()
        self._room = asyncio.Semaphore(window)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by stage, as for `Server-Timing`."""
        return {"queue": self.queue_s or 0.0, "run": self.run_s}

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `app.noise.Runner`. Raises what `Engine.submit` raises."""
        async with self._room:
            item = WorkItem(
                self._digest,
                graph,
                arrays,
                precision=self.precision,
                priority=self._priority,
                deadline=self._deadline,
                admission=self.admission,
            )
            answer = await self._engine.submit(item)
        self.backend, self.precision = answer.backend, answer.precision
        self.queue_s = answer.queue_s if self.queue_s is None else self.queue_s
        self.run_s += answer.run_s
        ran(answer.queue_s, answer.run_s)
        return answer.arrays


class BulkRunner:
    """Runs a job's graphs through the queue behind everything that somebody waits for, however long that takes.

    Where the queue is full or no worker is ready, it waits. No deadline, no room booked in advance.
    """

    def __init__(self, engine: Engine, digest: str, precision: str, window: int, tiling: Tiling) -> None:
        self.window = window
        self.tiling = tiling
        self.backend = engine.config.backends[precision]
        self.precision = precision
        self._engine = engine
        self._digest = digest
        self._room = asyncio.Semaphore(window)

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `app.noise.Runner`. Raises what `Engine.submit` raises, but for QueueFull and NotReady."""
        item = WorkItem(self._digest, graph, arrays, precision=self.precision, priority=Priority.BULK)
        async with self._room:
            while True:
                try:
                    return (await self._engine.submit(item)).arrays
                except (QueueFull, NotReady) as refusal:
                    await asyncio.sleep(min(getattr(refusal, "retry_after_s", BULK_WAIT_S), BULK_WAIT_S))


class LocalRunner:
    """Runs a loaded backend in this process, one graph at a time."""

    window = 2  # one is cut while another runs

    def __init__(self, backend: Backend, tiling: Tiling | None = None) -> None:
        self.backend = backend.name
        self.precision = backend.precision
        self.tiling = tiling or Tiling()
        self._loaded = backend
        self._lock = asyncio.Lock()

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `app.noise.Runner`. Raises what the runtime raises, or OutOfMemory."""
        async with self._lock:
            try:
                return await asyncio.to_thread(self._loaded.run, graph, arrays)
            except Exception as exc:
                if lacked_memory(exc):
                    raise OutOfMemory(f"{type(exc).__name__}: {exc}") from exc
                raise
