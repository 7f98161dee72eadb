"""Who works on jobs: takes what is due, runs its handler, and notes what became of it."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from app.errors import BackendUnavailable, DiskFull, JobsUnavailable, NotReady, QueueFull, WorkerLost
from app.jobs.folder import JobFolder
from app.jobs.ledger import Ledger
from app.jobs.run import Blocked, Handler, Later, Run
from app.jobs.store import Job, State, Store
from app.log import event, places
from app.problem import of_job, of_job_unexpected
from models.errors import MedRestoreError

SERVICE = (QueueFull, NotReady, DiskFull, JobsUnavailable)  # no fault of the job: it waits, however often
RETRIED = (WorkerLost, BackendUnavailable)  # may go well another time, and may be its fault
STORE_RETRY_S = 10.0
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class JobConfig:
    """How jobs are worked on and kept."""

    workers: int = 1  # jobs of one kind at one time
    workers_of: Mapping[str, int] = field(default_factory=dict)  # kind -> the same, where it is another number
    unfinished: int = 1000  # most jobs that wait or run
    keep_s: float = 86400.0  # finished jobs and their files are deleted after
    attempts: int = 5  # runs of a job whose failure may pass
    deaths: int = 3  # of the service during a job, after which it is given up
    backoff_s: float = 2.0  # before the second attempt, doubled before each further one
    backoff_most_s: float = 300.0


class Crew:
    """The workers of all kinds of jobs. All methods belong to one event loop."""

    def __init__(self, ledger: Ledger, folder: JobFolder, handlers: Mapping[str, Handler], config: JobConfig) -> None:
        self._ledger = ledger
        self._folder = folder
        self._handlers = handlers
        self._config = config
        self._owed: dict[str, float] = {}  # jobs to put back, when they are due: the store could not be written
        self._running: dict[str, asyncio.Task[None]] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._work = {kind: asyncio.Event() for kind in handlers}  # set when there may be something to run
        self._stopping = False

    def start(self) -> None:
        """Begins to work."""
        self._workers = [
            asyncio.create_task(self._serve(kind), name=f"jobs {kind}")
            for kind in self._handlers
            for _ in range(self._config.workers_of.get(kind, self._config.workers))
        ]

    def close(self) -> None:
        """Starts no more jobs; those that run go on until `stop`."""
        self._stopping = True

    async def stop(self) -> None:
        """Puts running jobs back into the queue."""
        self.close()
        for work in self._work.values():
            work.set()
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def call(self, kind: str) -> None:
        """There may be something to run."""
        self._work[kind].set()

    async def rest(self, id: str, cancel: bool = False) -> None:
        """Returns when no run of a job is under way any more; `cancel` ends it."""
        while task := self._running.get(id):
            if cancel:
                task.cancel()
            await asyncio.wait({task})

    # -- which job ----------------------------------------------------------------------------

    async def _serve(self, kind: str) -> None:
        """One of the workers: runs what is due."""
        work = self._work[kind]
        while not self._stopping:
            work.clear()
            try:
                await self._put_back()
                if job := await self._ledger.ask(Store.claim, kind):
                    work.set()  # there may be more than this one, for another worker
                    await self._take(job)
                    continue
                due = await self._ledger.ask(Store.next_due, kind)
                wait_s = None if due is None else max(0.05, due - time.time())
            except Exception as error:  # noqa: BLE001  (a full disk, most likely: what is in the file stays as it is)
                event("jobs cannot be written", logging.ERROR, **places(error))
                wait_s = STORE_RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await work.wait()

    async def _take(self, job: Job) -> None:
        """Runs a job; one that the service's stop cuts off is queued again. Who cancels a run has ended its job."""
        task = self._running[job.id] = asyncio.create_task(self._run(job), name=f"job {job.id}")
        if self._stopping:
            task.cancel()
        await asyncio.wait({task})
        del self._running[job.id]
        if task.cancelled():
            if not self._stopping:
                return
            self._owed[job.id] = time.time()
        elif task.exception() is None:
            return
        else:
            self._owed[job.id] = time.time() + STORE_RETRY_S  # the store failed: what was done is in the job's folder
        await self._put_back()

    async def _put_back(self) -> None:
        """Queues what nobody works on any more, and the store says to be running."""
        while self._owed:
            id, due = self._owed.popitem()  # taken, so that no other worker puts it back again later
            try:
                job = await self._ledger.ask(Store.postpone, id, due)
            except MedRestoreError:
                self._owed[id] = due
                raise
            if job:
                event("job put back", job=id, kind=job.kind)
                self._ledger.ring(id)

    # -- one run ------------------------------------------------------------------------------

    async def _run(self, job: Job) -> None:
        """One run, to the end of the job or to its next attempt; nothing, where it was cancelled just now."""
        current = await self._ledger.ask(Store.find, job.id)
        if current is None or current.state is not State.RUNNING:
            return
        await self._ledger.told(job.id)
        event("job started", job=job.id, kind=job.kind, attempt=job.attempts)
        run = self._new_run(job)
        try:
            outcome = await self._handlers[job.kind](run)
        except Later as later:
            await self._wait(job, later)
        except Blocked as blocked:
            await self._block(job, blocked.reason)
        except MedRestoreError as error:
            await self._fail(job, run, error)
        except OSError as error:
            if error.errno not in NO_SPACE:
                await self._fail_unexpected(job, error)
            else:
                await self._fail(job, run, DiskFull("the jobs' disk is full"))
        except Exception as error:  # noqa: BLE001  (a handler's mistake must not end the worker)
            await self._fail_unexpected(job, error)
        else:
            ended = await self._ledger.finish(job, State.DONE, outcome)
            if ended is not None and not ended.state.final:  # it is to be run again
                self.call(job.kind)

    def _new_run(self, job: Job) -> Run:
        async def advance(done: int, total: int) -> None:
            await self._ledger.ask(Store.advance, job.id, done, total)
            self._ledger.ring(job.id)

        async def enter(phase: str) -> None:
            await self._ledger.ask(Store.enter, job.id, phase)
            self._ledger.ring(job.id)

        return Run(job, self._folder.of(job.id), advance, enter)

    async def _fail(self, job: Job, run: Run, error: MedRestoreError) -> None:
        """Ends the job, or has it run again later where that may help."""
        if isinstance(error, SERVICE):
            await self._wait(job, Later(error, self._pause_s(run.waits)))
        elif not isinstance(error, RETRIED) or job.attempts >= self._config.attempts:
            await self._ledger.finish(job, State.FAILED, problem=of_job(job.id, error))
        else:
            wait_s = self._pause_s(job.attempts - 1)
            await self._ledger.ask(Store.postpone, job.id, time.time() + wait_s)
            await self._rested(job, error, wait_s)

    def _pause_s(self, before: int) -> float:
        """How long a job waits that has waited so often, so that jobs that failed together do not come back so."""
        wait_s: float = min(self._config.backoff_s * 2 ** min(before, 30), self._config.backoff_most_s)
        return wait_s * random.uniform(0.8, 1.2)

    async def _wait(self, job: Job, later: Later) -> None:
        problem = of_job(job.id, later.reason)
        await self._ledger.ask(Store.wait, job.id, time.time() + later.wait_s, problem)
        await self._rested(job, later.reason, later.wait_s)

    async def _rested(self, job: Job, reason: MedRestoreError, wait_s: float) -> None:
        event("job waits", logging.WARNING, job=job.id, kind=job.kind, reason=str(reason), wait_s=round(wait_s, 1))
        await self._ledger.told(job.id)

    async def _block(self, job: Job, reason: MedRestoreError) -> None:
        await self._ledger.ask(Store.block, job.id, of_job(job.id, reason))
        event("job blocked", logging.ERROR, job=job.id, kind=job.kind, reason=str(reason))
        await self._ledger.told(job.id)

    async def _fail_unexpected(self, job: Job, error: Exception) -> None:
        event("unexpected error", logging.ERROR, job=job.id, kind=job.kind, **places(error))
        await self._ledger.finish(job, State.FAILED, problem=of_job_unexpected(job.id))
