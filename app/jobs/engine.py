"""Durable jobs: what was accepted is done, whatever happens to the service meanwhile.

The engine knows nothing of images. A job has a kind, which names a handler, and JSON parameters; the
handler works in the job's own folder, tells its progress, and gives JSON as its outcome. It may be
called again after a failure, a stop or a death of the service, and goes on from what its folder holds.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any
from weakref import WeakValueDictionary

from app.errors import JobAbandoned, JobNotFound, QueueFull
from app.jobs.crew import Crew, JobConfig
from app.jobs.folder import JobFolder
from app.jobs.ledger import JobObserver, Ledger
from app.jobs.run import Handler
from app.jobs.store import DATABASE, Job, State, Store
from app.log import event
from app.offload import whole
from app.problem import of_job
from models.errors import MedRestoreError, OptionError

SWEEP_S = 60.0


class JobEngine:
    """Takes jobs, runs them, and tells how they are. All methods belong to one event loop."""

    def __init__(
        self,
        folder: JobFolder,
        handlers: Mapping[str, Handler],
        config: JobConfig | None = None,
        observer: JobObserver | None = None,
    ) -> None:
        self.folder = folder
        self.config = config = config or JobConfig()
        self.intake = asyncio.Lock()  # for callers: one at a time judges what came in, which may take memory
        self._handlers = handlers
        self._observer = observer or JobObserver()
        self._ledger = Ledger(self._observer)
        self._crew = Crew(self._ledger, folder, handlers, config)
        self._held = ExitStack()  # the folder and the store, while they are ours
        self._sweeper: asyncio.Task[None]
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes the folder and goes on where the last service was. Raises JobsUnavailable."""
        try:
            await whole(asyncio.to_thread(self._open))
            for job in await self._ledger.ask(Store.recover):
                await self._resume(job)
            known = await self._ledger.ask(Store.ids)
            await whole(asyncio.to_thread(self.folder.delete_strangers, known))
        except BaseException:
            self._held.close()
            raise
        await self._ledger.count()
        self._crew.start()
        self._sweeper = asyncio.create_task(self._sweep(), name="jobs that are over")

    async def stop(self) -> None:
        """Puts running jobs back into the queue and ends every `watch`."""
        self.close()
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._crew.stop()
        await asyncio.to_thread(self._held.close)  # waits for who still asks the store

    def close(self) -> None:
        """Ends every `watch`, and starts no more jobs; those that run go on until `stop`."""
        self._crew.close()
        self._ledger.dismiss()

    def _open(self) -> None:
        self.folder.open()
        self._held.callback(self.folder.close)
        self._ledger.open(self.folder.root / DATABASE)
        self._held.callback(self._ledger.close)

    async def _resume(self, job: Job) -> None:
        if job.deaths >= self.config.deaths:
            await self._ledger.finish(job, State.FAILED, problem=of_job(job.id, JobAbandoned(job.deaths)))
            return
        event("job resumed", job=job.id, kind=job.kind, deaths=job.deaths, steps=job.progress)
        self._observer.job_resumed(job.kind)

    # -- new jobs -----------------------------------------------------------------------------

    @property
    def counts(self) -> Mapping[State, int]:
        """Jobs by state."""
        return self._ledger.counts

    @staticmethod
    def new_id() -> str:
        """An identifier that tells nothing."""
        return uuid.uuid4().hex

    def check(self) -> None:
        """Whether one job more may wait. Raises QueueFull."""
        unfinished = sum(count for state, count in self.counts.items() if not state.final)
        if unfinished >= self.config.unfinished:
            raise QueueFull("jobs", 60.0)

    async def submit(
        self,
        id: str,
        kind: str,
        parameters: dict[str, Any],
        total: int | None = None,
        key: str | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> Job:
        """Queues a job whose folder holds what its handler needs. Once this returns, the job survives anything.

        Where `key` was used before, that job is given; raises OptionError where it was `asked` for something else
        (see `same`; None: all parameters), and what `check` raises. The folder is the job's from now on, whatever
        becomes of the caller, and is deleted where it becomes no job.
        """
        if kind not in self._handlers:
            raise ValueError(f"no handler for jobs of kind {kind!r}")
        job = await whole(self._accept(id, kind, parameters, total, key))
        return job if job.id == id else same(job, kind, parameters if asked is None else asked)

    async def _accept(self, id: str, kind: str, parameters: dict[str, Any], total: int | None, key: str | None) -> Job:
        """The new job, or the one that the key named before."""
        job: Job | None = None
        try:
            self.check()
            job = await self._ledger.ask(Store.add, id, kind, parameters, total, key)
        finally:
            if job is None or job.id != id:
                await asyncio.to_thread(self.folder.delete, id)
        if job.id == id:
            event("job accepted", job=id, kind=kind, steps=total)
            self._crew.call(kind)
            await self._ledger.count()
        return job

    # -- look-ups -----------------------------------------------------------------------------

    async def known(self, key: str, kind: str, asked: Mapping[str, Any]) -> Job | None:
        """The job that was made under an idempotency key. Raises OptionError where it was `asked` for other work."""
        job = await self._ledger.ask(Store.find_by_key, key)
        return job and same(job, kind, asked)

    async def get(self, id: str) -> Job:
        """Raises JobNotFound."""
        return await self._ledger.get(id)

    async def made(self, series: str) -> bool:
        """Whether a job here made this series, a SeriesInstanceUID."""
        return await self._ledger.ask(Store.made, series)

    async def page(
        self,
        kind: str,
        count: int,
        status: str | None = None,
        parameter: tuple[str, str] | None = None,
        before: tuple[float, str] | None = None,
    ) -> list[Job]:
        """See `Store.page`."""
        return await self._ledger.ask(Store.page, kind, count, status, parameter, before)

    def watch(self, id: str, every_s: float) -> AsyncIterator[Job]:
        """The job as it is now, then after each change and at least `every_s`, until it has ended or the service stops.

        Changes that follow fast on each other may come as one. Raises JobNotFound.
        """
        return self._ledger.watch(id, every_s)

    # -- changes: one at a time for each job --------------------------------------------------

    async def retry(self, id: str) -> Job:
        """Has a job run again: at once where it has ended, waits or is blocked, after this run where it runs.

        Raises JobNotFound.
        """
        async with self._alone(id):
            if (await self.get(id)).state.final:
                await self._crew.rest(id)  # a run that is ending must not meet the next one
            job = await self._ledger.ask(Store.retry, id)
        if job is None:
            raise JobNotFound("the job was deleted just now")
        event("job queued again", job=id, kind=job.kind)
        self._crew.call(job.kind)
        await self._ledger.told(id)
        return job

    async def delete(self, id: str) -> None:
        """Cancels a job that has not ended, and forgets one that has; deletes its files. Raises JobNotFound."""
        if not (await self.get(id)).state.final:
            await self.cancel(id)
        elif await whole(self._forget(id, math.inf)):
            await self._ledger.told(id)

    async def cancel(self, id: str) -> Job:
        """Ends a job that has not ended, and deletes its files. Raises JobNotFound."""
        await whole(self._cancel(await self.get(id)))
        return await self.get(id)

    async def _cancel(self, job: Job) -> None:
        async with self._alone(job.id):
            if await self._ledger.finish(job, State.CANCELLED):
                await self._crew.rest(job.id, cancel=True)
                await asyncio.to_thread(self.folder.delete, job.id)

    async def _forget(self, id: str, moment: float) -> bool:
        """Deletes a job that had ended by then, and its files; whether it did."""
        async with self._alone(id):
            gone = await self._ledger.ask(Store.remove, id, moment)
            if gone:
                await asyncio.to_thread(self.folder.delete, id)
        return gone

    def _alone(self, id: str) -> asyncio.Lock:
        """Held by who changes a job from outside of its run."""
        return self._locks.setdefault(id, asyncio.Lock())

    async def _sweep(self) -> None:
        """Deletes jobs whose time is over, now and then."""
        while True:
            with suppress(MedRestoreError):  # next time
                moment = time.time() - self.config.keep_s
                for job in await self._ledger.ask(Store.finished_before, moment):
                    if await self._forget(job.id, moment):
                        event("job forgotten", job=job.id, kind=job.kind)
            await self._ledger.count()
            await asyncio.sleep(min(SWEEP_S, self.config.keep_s))


def same(job: Job, kind: str, asked: Mapping[str, Any]) -> Job:
    """The job, once it is what was asked for: of its kind, and made with these parameters. Raises OptionError.

    Parameters that are not among those asked for were found for the caller, and may be found otherwise next time.
    """
    made_with = {name: job.parameters.get(name) for name in asked}
    if job.kind != kind or made_with != asked:
        raise OptionError("this Idempotency-Key was used for a job with other options; use a new one for each job")
    return job
