"""The engine of jobs with handlers that are scripts: retries, deaths, stops, cancellation, retention."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.errors import DiskFull, JobNotFound, JobsUnavailable, QueueFull, RunFailed, WorkerLost
from app.jobs.engine import Handler, JobConfig, JobEngine, JobObserver, Run
from app.jobs.folder import JobFolder
from app.jobs.store import Job, State, Store
from models.errors import CorruptImage, OptionError

FAST = {"backoff_s": 0.01, "backoff_most_s": 0.02}
LIMIT_S = 20.0


class Seen(JobObserver):
    def __init__(self) -> None:
        self.ends: list[str] = []
        self.resumed = 0

    def job_finished(self, kind: str, state: str, duration_s: float | None) -> None:
        self.ends.append(state)

    def job_resumed(self, kind: str) -> None:
        self.resumed += 1


@asynccontextmanager
async def engine(
    root: Path, handler: Handler, observer: JobObserver | None = None, **config: Any
) -> AsyncIterator[JobEngine]:
    made = JobEngine(JobFolder(root, 10**9, 0), {"k": handler}, JobConfig(**(FAST | config)), observer)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def submit(jobs: JobEngine, key: str | None = None, **parameters: Any) -> Job:
    id = jobs.new_id()
    jobs.folder.make(id)
    return await jobs.submit(id, "k", parameters, key=key)


async def end_of(jobs: JobEngine, id: str) -> Job:
    async with asyncio.timeout(LIMIT_S):
        async for job in jobs.watch(id, 60):
            last = job
    return last


def scripted(*errors: Exception) -> tuple[Handler, list[Run]]:
    """A handler that raises these one after the other, then succeeds; and the runs it saw."""
    runs: list[Run] = []

    async def handler(run: Run) -> dict[str, Any]:
        runs.append(run)
        if len(runs) <= len(errors):
            raise errors[len(runs) - 1]
        return {"runs": len(runs)}

    return handler, runs


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def test_a_job_runs_with_its_parameters_in_its_folder(tmp_path: Path) -> None:
    async def handler(run: Run) -> dict[str, Any]:
        (run.folder / "made").write_text("x")
        await run.progress(1, 2)
        return {"double": 2 * run.parameters["n"]}

    async def work() -> None:
        seen = Seen()
        async with engine(tmp_path, handler, seen) as jobs:
            job = await end_of(jobs, (await submit(jobs, n=21)).id)
            assert (job.state, job.outcome, job.progress, job.total) == (State.DONE, {"double": 42}, 1, 2)
            assert (jobs.folder.of(job.id) / "made").exists()
            async with asyncio.timeout(LIMIT_S):
                while jobs.counts[State.DONE] != 1:
                    await asyncio.sleep(0.01)
        assert seen.ends == ["done"]

    run(work)


@pytest.mark.parametrize(
    "error", [WorkerLost("w"), QueueFull("items", 1), DiskFull("d", 1), OSError(errno.ENOSPC, "full")]
)
def test_what_may_pass_is_tried_again(tmp_path: Path, error: Exception) -> None:
    async def work() -> None:
        handler, runs = scripted(error, error)
        async with engine(tmp_path, handler) as jobs:
            job = await end_of(jobs, (await submit(jobs)).id)
            assert (job.state, job.attempts, len(runs)) == (State.DONE, 3, 3)

    run(work)


def test_attempts_come_to_an_end(tmp_path: Path) -> None:
    async def work() -> None:
        handler, _ = scripted(*[WorkerLost("the worker died")] * 9)
        async with engine(tmp_path, handler, attempts=3) as jobs:
            job = await end_of(jobs, (await submit(jobs)).id)
            assert (job.state, job.attempts) == (State.FAILED, 3)
            assert job.problem is not None
            assert job.problem["type"].endswith("worker-lost")

    run(work)


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        (CorruptImage("cut short"), "corrupt-image"),
        (RunFailed("no numbers"), "run-failed"),
        (KeyError("patient name"), "internal"),
        (OSError(errno.EIO, "patient name"), "internal"),
    ],
)
def test_what_will_not_pass_fails_at_once(tmp_path: Path, error: Exception, slug: str) -> None:
    async def work() -> None:
        handler, runs = scripted(error)
        async with engine(tmp_path, handler) as jobs:
            job = await end_of(jobs, (await submit(jobs)).id)
            assert (job.state, len(runs)) == (State.FAILED, 1)
            assert job.problem is not None
            assert job.problem["type"] == f"urn:medrestore:problem:{slug}"
            assert "patient" not in str(job.problem)
            assert (await end_of(jobs, (await submit(jobs)).id)).state is State.DONE  # the worker goes on

    run(work)


async def endless(run: Run) -> dict[str, Any]:
    await run.progress(1, 100)
    await asyncio.Event().wait()
    return {}


async def started(jobs: JobEngine, id: str) -> None:
    async for job in jobs.watch(id, 60):
        if job.progress:
            return


def test_a_stop_costs_no_death_and_the_job_goes_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless) as jobs:
            job = await submit(jobs)
            await started(jobs, job.id)
        handler, runs = scripted()
        seen = Seen()
        async with engine(tmp_path, handler, seen) as jobs:
            again = await end_of(jobs, job.id)
            assert (again.state, again.deaths, len(runs), seen.resumed) == (State.DONE, 0, 1, 0)

    run(work)


def die(root: Path) -> None:
    """Leaves things as a service does that is killed while a job runs."""
    store = Store(root / "jobs.sqlite3")
    assert store.claim() is not None
    store.close()


def test_a_job_survives_deaths_but_not_any_number_of_them(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless) as jobs:
            job = await submit(jobs)
            await started(jobs, job.id)
        seen = Seen()
        for deaths in (1, 2):
            die(tmp_path)
            async with engine(tmp_path, endless, seen) as jobs:
                await started(jobs, job.id)
                assert (await jobs.get(job.id)).deaths == deaths
        die(tmp_path)
        async with engine(tmp_path, endless, seen) as jobs:
            ended = await jobs.get(job.id)
            assert (ended.state, ended.deaths, seen.resumed) == (State.FAILED, 3, 2)
            assert ended.problem is not None
            assert ended.problem["type"].endswith("job-abandoned")
            assert "3 times" in ended.problem["detail"]

    run(work)


def test_progress_gives_a_job_all_its_deaths_anew(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless) as jobs:
            job = await submit(jobs)
            await started(jobs, job.id)
        for progress in range(2, 7):

            async def further(run: Run, progress: int = progress) -> dict[str, Any]:
                await run.progress(progress, 100)
                return await endless(run)

            die(tmp_path)
            async with engine(tmp_path, further) as jobs:
                async for now in jobs.watch(job.id, 60):
                    if now.progress >= progress:
                        break
                assert (await jobs.get(job.id)).state == State.RUNNING

    run(work)


def test_a_cancelled_job_stops_and_frees_its_worker(tmp_path: Path) -> None:
    async def work() -> None:
        freed = asyncio.Event()

        async def handler(run: Run) -> dict[str, Any]:
            if run.parameters.get("quick"):
                return {}
            try:
                return await endless(run)
            finally:
                freed.set()

        async with engine(tmp_path, handler) as jobs:
            job, waiting, quick = await submit(jobs), await submit(jobs), await submit(jobs, quick=True)
            await started(jobs, job.id)
            await jobs.delete(waiting.id)
            await jobs.delete(job.id)
            assert freed.is_set()
            assert [(await jobs.get(each.id)).state for each in (job, waiting)] == [State.CANCELLED] * 2
            assert (await end_of(jobs, quick.id)).state is State.DONE
            assert not jobs.folder.of(job.id).exists()
            await jobs.delete(job.id)
            with pytest.raises(JobNotFound):
                await jobs.get(job.id)

    run(work)


def test_as_many_jobs_at_once_as_there_are_workers(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless, workers=2) as jobs:
            made = [await submit(jobs) for _ in range(3)]
            for job in made[:2]:
                await started(jobs, job.id)
            assert (await jobs.get(made[2].id)).state is State.QUEUED

    run(work)


def test_one_more_than_may_wait_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless, unfinished=2) as jobs:
            for _ in range(2):
                await submit(jobs)
            with pytest.raises(QueueFull):
                await submit(jobs)

    run(work)


def test_a_key_names_one_job(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless) as jobs:
            first, again = await submit(jobs, "key", n=1), await submit(jobs, "key", n=1)
            assert first.id == again.id
            assert len(list(tmp_path.glob("files/*"))) == 1
            known = await jobs.known("key", "k", {"n": 1})
            assert known is not None
            with pytest.raises(OptionError, match="Idempotency-Key"):
                await submit(jobs, "key", n=2)

    run(work)


def test_finished_jobs_are_forgotten_in_time_and_strangers_at_the_start(tmp_path: Path) -> None:
    async def work() -> None:
        handler, _ = scripted()
        async with engine(tmp_path, handler, keep_s=0.2) as jobs:
            job = await end_of(jobs, (await submit(jobs)).id)
            async with asyncio.timeout(LIMIT_S):
                with suppress(JobNotFound):
                    while await jobs.get(job.id):
                        await asyncio.sleep(0.05)
            assert not jobs.folder.of(job.id).exists()
            jobs.folder.make("upload-that-was-cut-off")
        async with engine(tmp_path, handler) as jobs:
            assert list(tmp_path.glob("files/*")) == []

    run(work)


def test_watchers_are_let_go_when_the_service_stops(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless) as jobs:
            job = await submit(jobs)
            watcher = asyncio.create_task(end_of(jobs, job.id))
            await started(jobs, job.id)
            jobs.close()
            assert not (await watcher).state.final

    run(work)


def test_a_folder_belongs_to_one_service(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless):
            with pytest.raises(JobsUnavailable, match="another service"):
                async with engine(tmp_path, endless):
                    pass
        async with engine(tmp_path, endless):
            pass

    run(work)


def test_room_is_held_for_what_is_promised(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "new" / "jobs", 1000, 0)
    folder.open()
    with folder.promise(600), pytest.raises(DiskFull), folder.promise(600):
        pass
    with folder.promise(600):
        pass
    (folder.make("a") / "file").write_bytes(b"x" * 700)
    with pytest.raises(DiskFull, match="1000"), folder.promise(600):
        pass
    folder.delete("a")
    with folder.promise(600):
        pass
    folder.close()
