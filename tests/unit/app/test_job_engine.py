"""The engine of jobs with handlers that are scripts: retries, deaths, stops, cancellation, retention."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.errors import DiskFull, JobNotFound, JobsUnavailable, NotReady, QueueFull, RunFailed, WorkerLost
from app.jobs.crew import JobConfig
from app.jobs.engine import JobEngine
from app.jobs.folder import JobFolder
from app.jobs.ledger import JobObserver
from app.jobs.run import Handler, Run
from app.jobs.store import Job, State, Store
from models.errors import CorruptImage, ImageTooLarge, OptionError

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


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    async def work() -> None:
        handler, runs = scripted(WorkerLost("w"), WorkerLost("w"))
        async with engine(tmp_path, handler) as jobs:
            job = await end_of(jobs, (await submit(jobs)).id)
            assert (job.state, job.attempts, len(runs)) == (State.DONE, 3, 3)

    run(work)


@pytest.mark.parametrize(
    "error", [QueueFull("items", 1), NotReady("starting"), DiskFull("d"), OSError(errno.ENOSPC, "full")]
)
def test_what_is_no_fault_of_the_job_is_waited_for_however_often(tmp_path: Path, error: Exception) -> None:
    async def work() -> None:
        handler, runs = scripted(*[error] * 6)
        async with engine(tmp_path, handler, attempts=2) as jobs:
            job = await end_of(jobs, (await submit(jobs)).id)
            assert (job.state, job.attempts, len(runs)) == (State.DONE, 1, 7)
            assert [run.waits for run in runs] == [0, 1, 2, 3, 4, 5, 6]

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


def test_a_key_is_judged_by_what_was_asked(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(tmp_path, endless) as jobs:
            id = jobs.new_id()
            jobs.folder.make(id)
            asked = {"model": "m"}
            await jobs.submit(id, "k", {**asked, "found": "m@1"}, key="key", asked=asked)
            again = await jobs.submit(jobs.new_id(), "k", {**asked, "found": "m@2"}, key="key", asked=asked)
            assert again.id == id
            known = await jobs.known("key", "k", asked)
            assert known is not None
            with pytest.raises(OptionError, match="Idempotency-Key"):
                await jobs.known("key", "k", {"model": "n"})

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
    async def allowed(folder: JobFolder, id: str, bytes: int) -> bool:
        with suppress(DiskFull):
            async with folder.promise(id, bytes):
                return True
        return False

    async def work() -> None:
        folder = JobFolder(tmp_path / "new" / "jobs", 1000, 0)
        folder.open()
        async with folder.promise("a", 600):
            assert not await allowed(folder, "b", 600)
            (folder.make("a") / "file").write_bytes(b"x" * 500)
            assert await allowed(folder, "b", 400)  # what has come of it counts once
            await folder.cover("a", 700)
            assert not await allowed(folder, "b", 400)
            async with folder.promise("b", 200):
                with pytest.raises(DiskFull, match="1000"):
                    await folder.cover("a", 900)
        assert await allowed(folder, "b", 400)
        assert not await allowed(folder, "b", 600)
        folder.delete("a")
        assert await allowed(folder, "b", 600)
        with pytest.raises(ImageTooLarge, match="job_disk_bytes"):
            await allowed(folder, "b", 1001)
        folder.close()

    run(work)


def test_a_job_whose_end_could_not_be_written_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.jobs.store.BUSY_S", 0.01)
    monkeypatch.setattr("app.jobs.crew.STORE_RETRY_S", 0.01)
    other = []

    async def handler(run: Run) -> dict[str, Any]:
        if not other:  # another process writes from now on
            other.append(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None))
            other[0].execute("BEGIN IMMEDIATE")
        return {}

    async def work() -> None:
        async with engine(tmp_path, handler) as jobs:
            job = await submit(jobs)
            async with asyncio.timeout(LIMIT_S):
                while [record.message for record in caplog.records].count("jobs cannot be written") < 2:
                    await asyncio.sleep(0.01)
            other[0].execute("ROLLBACK")
            assert (await end_of(jobs, job.id)).state is State.DONE

    caplog.set_level(logging.INFO, "medrestore")
    run(work)
    other[0].close()


def test_a_stop_lets_what_is_being_written_come_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        reached = asyncio.Event()
        loop, advance = asyncio.get_running_loop(), Store.advance

        def slow(store: Store, *values: Any) -> Job | None:
            loop.call_soon_threadsafe(reached.set)
            time.sleep(0.1)
            return advance(store, *values)

        monkeypatch.setattr(Store, "advance", slow)
        async with engine(tmp_path, endless) as jobs:
            job = await submit(jobs)
            await reached.wait()
        found = Store(tmp_path / "jobs.sqlite3").find(job.id)
        assert found is not None
        assert (found.state, found.progress) == (State.QUEUED, 1)

    run(work)


BROKEN = {
    "gone": "DROP TABLE job",
    "of another make": "UPDATE job SET state = 'running'; ALTER TABLE job DROP COLUMN created",
    "no job": "UPDATE job SET state = 'running', parameters = 'no JSON'",
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_damaged_database_is_told_and_let_go(tmp_path: Path, damage: str) -> None:
    async def work() -> None:
        handler, _ = scripted()
        async with engine(tmp_path, handler) as jobs:
            await end_of(jobs, (await submit(jobs)).id)
        with sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None) as connection:
            connection.executescript(f"DROP INDEX job_by_age; {damage}")
        connection.close()
        with pytest.raises(JobsUnavailable, match="database"):
            async with engine(tmp_path, handler):
                pass
        JobFolder(tmp_path, 10**9, 0).open()  # for another service to take

    run(work)
