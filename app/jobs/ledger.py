"""The store of jobs as one event loop uses it: asked in threads, with counts, and with bells for who watches a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from app.errors import JobNotFound
from app.jobs.store import Job, State, Store
from app.log import event
from app.offload import whole
from models.errors import MedRestoreError

P = ParamSpec("P")
T = TypeVar("T")


class JobObserver:
    """Called on the event loop for metrics; override what is published."""

    def job_finished(self, kind: str, state: str, duration_s: float | None) -> None:
        """A job reached an end state; the duration is from its first start."""

    def job_resumed(self, kind: str) -> None:
        """A job that was running when the service died goes on."""


class Ledger:
    """All methods but `open` and `close` belong to one event loop."""

    def __init__(self, observer: JobObserver) -> None:
        self.counts: Mapping[State, int] = dict.fromkeys(State, 0)  # jobs by state, as of the last `count`
        self._observer = observer
        self._store: Store
        self._bells: dict[str, set[asyncio.Event]] = {}  # rung when a job changes
        self._over = False

    def open(self, path: Path) -> None:
        """Raises JobsUnavailable."""
        self._store = Store(path)

    def close(self) -> None:
        """Waits for who still asks."""
        self._store.close()

    async def ask(self, method: Callable[Concatenate[Store, P], T], *values: P.args, **named: P.kwargs) -> T:
        """Calls the store off the event loop, to its end even where the caller is cancelled meanwhile."""
        return await whole(asyncio.to_thread(method, self._store, *values, **named))

    async def get(self, id: str) -> Job:
        """Raises JobNotFound."""
        job = await self.ask(Store.find, id)
        if job is None:
            raise JobNotFound("no such job; it was deleted, or its time to be kept is over")
        return job

    async def told(self, id: str) -> None:
        """Counts anew, and has the watchers of a job look."""
        await self.count()
        self.ring(id)

    async def count(self) -> None:
        with suppress(MedRestoreError):  # they will be told next time
            self.counts = await self.ask(Store.counts)

    async def finish(
        self, job: Job, state: State, outcome: dict[str, Any] | None = None, problem: dict[str, Any] | None = None
    ) -> Job | None:
        """The one place that ends a job: as it is now, queued where it is to be run again; None where it had ended."""
        ended = await self.ask(Store.finish, job.id, state, outcome, problem)
        if ended is not None and ended.state.final:
            self._announce(ended)
        if ended is not None:
            await self.told(job.id)
        return ended

    def _announce(self, job: Job) -> None:
        duration_s = None if job.started is None or job.finished is None else job.finished - job.started
        self._observer.job_finished(job.kind, job.state, duration_s)
        more = {} if job.problem is None else {"problem": job.problem["type"]}
        rounded = None if duration_s is None else round(duration_s, 2)
        event("job ended", job=job.id, kind=job.kind, state=job.state, steps=job.progress, duration_s=rounded, **more)

    # -- watchers -----------------------------------------------------------------------------

    async def watch(self, id: str, every_s: float) -> AsyncIterator[Job]:
        """See `JobEngine.watch`."""
        bell = asyncio.Event()
        self._bells.setdefault(id, set()).add(bell)
        try:
            while True:
                bell.clear()
                job = await self.get(id)
                yield job
                if job.state.final or self._over:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await bell.wait()
        finally:
            self._bells[id].discard(bell)
            if not self._bells[id]:
                del self._bells[id]

    def ring(self, id: str) -> None:
        """Has the watchers of a job look."""
        for bell in self._bells.get(id, ()):
            bell.set()

    def dismiss(self) -> None:
        """Ends every `watch`."""
        self._over = True
        for id in list(self._bells):
            self.ring(id)
