"""Durable jobs: what was accepted is done, whatever happens to the service meanwhile.

The engine knows nothing of images. A job has a kind, which names a handler, and JSON parameters; the
handler works in the job's own folder, tells its progress, and gives JSON as its outcome. It may be
called again after a failure, a stop or a death of the service, and goes on from what its folder holds.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from app.errors import (
    BackendUnavailable,
    DiskFull,
    JobAbandoned,
    JobNotFound,
    JobsUnavailable,
    NotReady,
    QueueFull,
    WorkerLost,
)
from app.jobs.folder import JobFolder
from app.jobs.store import DATABASE, Job, State, Store
from app.log import event, places
from app.offload import whole
from app.problem import of_job, of_job_unexpected
from models.errors import MedRestoreError, OptionError

T = TypeVar("T")

RETRIED = (QueueFull, NotReady, WorkerLost, DiskFull, BackendUnavailable, JobsUnavailable)  # may go well another time
SWEEP_S, STORE_RETRY_S = 60.0, 10.0
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class JobConfig:
    """How the engine runs."""

    workers: int = 1  # jobs of one kind at one time
    workers_of: Mapping[str, int] = field(default_factory=dict)  # kind -> the same, where it is another number
    unfinished: int = 1000  # most jobs that wait or run
    keep_s: float = 86400.0  # finished jobs and their files are deleted after
    attempts: int = 5  # runs of a job whose failure may pass
    deaths: int = 3  # of the service during a job, after which it is given up
    backoff_s: float = 2.0  # before the second attempt, doubled before each further one
    backoff_most_s: float = 300.0


class JobObserver:
    """Called on the event loop for metrics; override what is published."""

    def job_finished(self, kind: str, state: str, duration_s: float | None) -> None:
        """A job reached an end state; the duration is from its first start."""

    def job_resumed(self, kind: str) -> None:
        """A job that was running when the service died goes on."""


class Later(Exception):
    """Raised by a handler that cannot go on now: the job waits `wait_s` and is run again, however often."""

    def __init__(self, reason: MedRestoreError, wait_s: float) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.wait_s = wait_s


class Blocked(Exception):
    """Raised by a handler that cannot go on until somebody acts: the job rests until `JobEngine.retry`."""

    def __init__(self, reason: MedRestoreError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Run:
    """What a handler gets: one run of one job."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        advance: Callable[[int, int], Awaitable[None]],
        enter: Callable[[str], Awaitable[None]],
    ) -> None:
        self.id = job.id
        self.parameters = job.parameters
        self.created = job.created
        self.waits = job.waits  # times that the job had to wait since it last got on
        self.waiting_since = job.waiting_since
        self.folder = folder
        self._done = job.progress
        self._advance = advance
        self._enter = enter

    async def progress(self, done: int, total: int) -> None:
        """Tells how far the work is, in steps of the handler's own. Who gets on has not had to wait."""
        if done > self._done:
            self._done, self.waits, self.waiting_since = done, 0, None
        await self._advance(done, total)

    async def phase(self, word: str) -> None:
        """Tells what the work is about from now on."""
        await self._enter(word)


Handler = Callable[[Run], Awaitable[dict[str, Any]]]


class JobEngine:
    """Takes jobs, runs them, and tells how they are. All methods belong to one event loop."""

    def __init__(
        self,
        folder: JobFolder,
        handlers: Mapping[str, Handler],
        config: JobConfig = JobConfig(),
        observer: JobObserver | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.intake = asyncio.Lock()  # for callers: one at a time judges what came in, which may take memory
        self._handlers = handlers
        self._observer = observer or JobObserver()
        self._store: Store
        self._held = ExitStack()  # the folder and the store, while they are ours
        self._counts = dict.fromkeys(State, 0)
        self._owed: dict[str, float] = {}  # jobs to put back, when they are due: the store could not be written
        self._running: dict[str, asyncio.Task[None]] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._sweeper: asyncio.Task[None]
        self._bells: dict[str, set[asyncio.Event]] = {}  # rung when a job changes
        self._work = {kind: asyncio.Event() for kind in handlers}  # set when there may be something to run
        self._stopping = False

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes the folder and goes on where the last service was. Raises JobsUnavailable."""
        try:
            await whole(asyncio.to_thread(self._open))
            for job in await self._ask(self._store.recover):
                await self._resume(job)
            known = await self._ask(self._store.ids)
            await whole(asyncio.to_thread(self.folder.delete_strangers, known))
        except BaseException:
            self._held.close()
            raise
        await self._count()
        self._workers = [
            asyncio.create_task(self._serve(kind), name=f"jobs {kind}")
            for kind in self._handlers
            for _ in range(self.config.workers_of.get(kind, self.config.workers))
        ]
        self._sweeper = asyncio.create_task(self._sweep(), name="jobs that are over")

    async def stop(self) -> None:
        """Puts running jobs back into the queue and ends every `watch`."""
        self.close()
        for work in self._work.values():
            work.set()
        self._sweeper.cancel()
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(self._sweeper, *self._workers, return_exceptions=True)
        await asyncio.to_thread(self._held.close)  # waits for who still asks the store

    def close(self) -> None:
        """Ends every `watch`, and starts no more jobs; those that run go on until `stop`."""
        self._stopping = True
        for id in list(self._bells):
            self._ring(id)

    def _open(self) -> None:
        self.folder.open()
        self._held.callback(self.folder.close)
        self._store = Store(self.folder.root / DATABASE)
        self._held.callback(self._store.close)

    async def _resume(self, job: Job) -> None:
        if job.deaths >= self.config.deaths:
            await self._finish(job, State.FAILED, problem=of_job(job.id, JobAbandoned(job.deaths)))
            return
        event("job resumed", job=job.id, kind=job.kind, deaths=job.deaths, steps=job.progress)
        self._observer.job_resumed(job.kind)

    # -- callers ------------------------------------------------------------------------------

    @property
    def counts(self) -> Mapping[State, int]:
        """Jobs by state."""
        return self._counts

    @staticmethod
    def new_id() -> str:
        """An identifier that tells nothing."""
        return uuid.uuid4().hex

    def check(self) -> None:
        """Whether one job more may wait. Raises QueueFull."""
        unfinished = sum(count for state, count in self._counts.items() if not state.final)
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
            job = await self._ask(self._store.add, id, kind, parameters, total, key)
        finally:
            if job is None or job.id != id:
                await asyncio.to_thread(self.folder.delete, id)
        if job.id == id:
            event("job accepted", job=id, kind=kind, steps=total)
            self._work[kind].set()
            await self._count()
        return job

    async def retry(self, id: str) -> Job:
        """Has a job run again: at once where it has ended, waits or is blocked, after this run where it runs.

        Raises JobNotFound.
        """
        await self.get(id)
        job = await self._ask(self._store.retry, id)
        if job is None:
            raise JobNotFound("the job was deleted just now")
        event("job queued again", job=id, kind=job.kind)
        await self._count()
        self._work[job.kind].set()
        self._ring(id)
        return job

    async def known(self, key: str, kind: str, asked: Mapping[str, Any]) -> Job | None:
        """The job that was made under an idempotency key. Raises OptionError where it was `asked` for other work."""
        job = await self._ask(self._store.find_by_key, key)
        return job and same(job, kind, asked)

    async def get(self, id: str) -> Job:
        """Raises JobNotFound."""
        job = await self._ask(self._store.find, id)
        if job is None:
            raise JobNotFound("no such job; it was deleted, or its time to be kept is over")
        return job

    async def made(self, series: str) -> bool:
        """Whether a job here made this series, a SeriesInstanceUID."""
        return await self._ask(self._store.made, series)

    async def page(
        self,
        kind: str,
        count: int,
        status: str | None = None,
        parameter: tuple[str, str] | None = None,
        before: tuple[float, str] | None = None,
    ) -> list[Job]:
        """See `Store.page`."""
        return await self._ask(self._store.page, kind, count, status, parameter, before)

    async def watch(self, id: str, every_s: float) -> AsyncIterator[Job]:
        """The job as it is now, then after each change and at least `every_s`, until it has ended or the service stops.

        Changes that follow fast on each other may come as one. Raises JobNotFound.
        """
        bell = asyncio.Event()
        self._bells.setdefault(id, set()).add(bell)
        try:
            while True:
                bell.clear()
                job = await self.get(id)
                yield job
                if job.state.final or self._stopping:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await bell.wait()
        finally:
            self._bells[id].discard(bell)
            if not self._bells[id]:
                del self._bells[id]

    async def delete(self, id: str) -> None:
        """Cancels a job that has not ended, and forgets one that has; deletes its files. Raises JobNotFound."""
        job = await self.get(id)
        if not job.state.final:
            await self.cancel(id)
            return
        await self._ask(self._store.remove, id)
        await asyncio.to_thread(self.folder.delete, id)
        await self._count()
        self._ring(id)

    async def cancel(self, id: str) -> Job:
        """Ends a job that has not ended, and deletes its files. Raises JobNotFound."""
        job = await self.get(id)
        if not job.state.final:
            await self._finish(job, State.CANCELLED)
            if task := self._running.get(id):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(self.folder.delete, id)
        return await self.get(id)

    # -- work ---------------------------------------------------------------------------------

    async def _serve(self, kind: str) -> None:
        """One of the workers: runs what is due."""
        work = self._work[kind]
        while not self._stopping:
            work.clear()
            try:
                await self._put_back()
                if job := await self._ask(self._store.claim, kind):
                    work.set()  # there may be more than this one, for another worker
                    await self._take(job)
                    continue
                due = await self._ask(self._store.next_due, kind)
                wait_s = None if due is None else max(0.05, due - time.time())
            except Exception as error:  # noqa: BLE001  (a full disk, most likely: what is in the file stays as it is)
                event("jobs cannot be written", logging.ERROR, **places(error))
                wait_s = STORE_RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await work.wait()

    async def _take(self, job: Job) -> None:
        """Runs a job; one that the service's stop cuts off is queued again."""
        task = self._running[job.id] = asyncio.create_task(self._run(job), name=f"job {job.id}")
        if self._stopping:
            task.cancel()
        await asyncio.wait({task})
        del self._running[job.id]
        if not task.cancelled() and task.exception() is None:
            return
        wait_s = 0.0 if task.cancelled() else STORE_RETRY_S  # the store failed: what the run did is in its folder
        self._owed[job.id] = time.time() + wait_s
        await self._put_back()

    async def _put_back(self) -> None:
        """Queues what nobody works on any more, and the store says to be running."""
        while self._owed:
            id, due = self._owed.popitem()  # taken, so that no other worker puts it back again later
            try:
                job = await self._ask(self._store.postpone, id, due)
            except MedRestoreError:
                self._owed[id] = due
                raise
            if job:
                event("job put back", job=id, kind=job.kind)
                self._ring(id)

    async def _run(self, job: Job) -> None:
        """One run, to the end of the job or to its next attempt; nothing, where it was cancelled just now."""
        current = await self._ask(self._store.find, job.id)
        if current is None or current.state is not State.RUNNING:
            return
        await self._count()
        self._ring(job.id)
        event("job started", job=job.id, kind=job.kind, attempt=job.attempts)
        run = Run(
            job,
            self.folder.of(job.id),
            lambda done, total: self._advance(job.id, done, total),
            lambda word: self._enter(job.id, word),
        )
        try:
            outcome = await self._handlers[job.kind](run)
        except Later as later:
            await self._wait(job, later)
        except Blocked as blocked:
            await self._block(job, blocked.reason)
        except MedRestoreError as error:
            await self._fail(job, error)
        except OSError as error:
            if error.errno not in NO_SPACE:
                await self._fail_unexpected(job, error)
            else:
                await self._fail(job, DiskFull("the jobs' disk is full"))
        except Exception as error:  # noqa: BLE001  (a handler's mistake must not end the worker)
            await self._fail_unexpected(job, error)
        else:
            await self._finish(job, State.DONE, outcome)

    async def _fail(self, job: Job, error: MedRestoreError) -> None:
        """Ends the job, or has it run again later where that may help."""
        if not isinstance(error, RETRIED) or job.attempts >= self.config.attempts:
            await self._finish(job, State.FAILED, problem=of_job(job.id, error))
            return
        wait_s = min(self.config.backoff_s * 2 ** (job.attempts - 1), self.config.backoff_most_s)
        wait_s *= random.uniform(0.8, 1.2)  # so that jobs that failed together do not come back together
        await self._ask(self._store.postpone, job.id, time.time() + wait_s)
        event("job waits", logging.WARNING, job=job.id, kind=job.kind, reason=str(error), wait_s=round(wait_s, 1))
        await self._count()
        self._ring(job.id)

    async def _wait(self, job: Job, later: Later) -> None:
        await self._ask(self._store.wait, job.id, time.time() + later.wait_s, of_job(job.id, later.reason))
        reason, wait_s = str(later.reason), round(later.wait_s, 1)
        event("job waits", logging.WARNING, job=job.id, kind=job.kind, reason=reason, wait_s=wait_s)
        await self._count()
        self._ring(job.id)

    async def _block(self, job: Job, reason: MedRestoreError) -> None:
        await self._ask(self._store.block, job.id, of_job(job.id, reason))
        event("job blocked", logging.ERROR, job=job.id, kind=job.kind, reason=str(reason))
        await self._count()
        self._ring(job.id)

    async def _fail_unexpected(self, job: Job, error: Exception) -> None:
        event("unexpected error", logging.ERROR, job=job.id, kind=job.kind, **places(error))
        await self._finish(job, State.FAILED, problem=of_job_unexpected(job.id))

    async def _finish(
        self, job: Job, state: State, outcome: dict[str, Any] | None = None, problem: dict[str, Any] | None = None
    ) -> None:
        """The one place that ends a job; nothing, where it has ended."""
        ended = await self._ask(self._store.finish, job.id, state, outcome, problem)
        if ended is None:
            return
        if not ended.state.final:  # it is to be run again
            self._work[job.kind].set()
            await self._count()
            self._ring(job.id)
            return
        duration_s = None if ended.started is None or ended.finished is None else ended.finished - ended.started
        self._observer.job_finished(job.kind, state, duration_s)
        more = {} if problem is None else {"problem": problem["type"]}
        rounded = None if duration_s is None else round(duration_s, 2)
        event("job ended", job=job.id, kind=job.kind, state=state, steps=ended.progress, duration_s=rounded, **more)
        await self._count()
        self._ring(job.id)

    async def _advance(self, id: str, done: int, total: int) -> None:
        await self._ask(self._store.advance, id, done, total)
        self._ring(id)

    async def _enter(self, id: str, phase: str) -> None:
        await self._ask(self._store.enter, id, phase)
        self._ring(id)

    async def _sweep(self) -> None:
        """Deletes jobs whose time is over, now and then."""
        while True:
            with suppress(MedRestoreError):  # next time
                for job in await self._ask(self._store.finished_before, time.time() - self.config.keep_s):
                    await asyncio.to_thread(self.folder.delete, job.id)
                    await self._ask(self._store.remove, job.id)
                    event("job forgotten", job=job.id, kind=job.kind)
            await self._count()
            await asyncio.sleep(min(SWEEP_S, self.config.keep_s))

    def _ring(self, id: str) -> None:
        for bell in self._bells.get(id, ()):
            bell.set()

    async def _count(self) -> None:
        with suppress(MedRestoreError):  # they will be told next time
            self._counts = await self._ask(self._store.counts)

    async def _ask(self, method: Callable[..., T], *values: Any) -> T:
        """Calls the store off the event loop, to its end even where the caller is cancelled meanwhile."""
        return await whole(asyncio.to_thread(method, *values))


def same(job: Job, kind: str, asked: Mapping[str, Any]) -> Job:
    """The job, once it is what was asked for: of its kind, and made with these parameters. Raises OptionError.

    Parameters that are not among those asked for were found for the caller, and may be found otherwise next time.
    """
    made_with = {name: job.parameters.get(name) for name in asked}
    if job.kind != kind or made_with != asked:
        raise OptionError("this Idempotency-Key was used for a job with other options; use a new one for each job")
    return job
