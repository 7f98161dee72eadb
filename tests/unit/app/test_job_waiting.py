"""Jobs that wait, are blocked, are run again, and tell what they are about."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.errors import QueueFull
from app.jobs.crew import JobConfig
from app.jobs.engine import JobEngine
from app.jobs.folder import JobFolder
from app.jobs.run import Blocked, Later, Run
from app.jobs.store import Job, State, Store
from models.errors import MedRestoreError
from tests.unit.app.test_job_engine import LIMIT_S, end_of, engine, submit


async def until(jobs: JobEngine, id: str, state: State) -> Job:
    """The job once it is in a state."""
    async with asyncio.timeout(LIMIT_S):
        async for job in jobs.watch(id, 0.05):
            if job.state is state:
                return job
    raise AssertionError(job)


def test_a_job_may_wait_more_often_than_it_has_attempts(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    async def handler(run: Run) -> dict[str, Any]:
        seen.append((run.waits, run.waiting_since is not None))
        if len(seen) <= 8:
            raise Later(MedRestoreError("not now"), 0.01)
        return {}

    async def work() -> Job:
        async with engine(tmp_path, handler, attempts=2) as jobs:
            return await end_of(jobs, (await submit(jobs)).id)

    job = asyncio.run(work())
    assert (job.state, job.attempts) == (State.DONE, 1)
    assert seen == [(n, n > 0) for n in range(9)]
    assert job.waiting_since is None


def test_a_waiting_job_says_so_and_why(tmp_path: Path) -> None:
    async def handler(run: Run) -> dict[str, Any]:
        raise Later(MedRestoreError("the PACS is down"), 3600)

    async def work() -> Job:
        async with engine(tmp_path, handler) as jobs:
            id = (await submit(jobs)).id
            while not (job := await jobs.get(id)).waits:
                await asyncio.sleep(0.01)
            return job

    job = asyncio.run(work())
    assert (job.state, job.phase) == (State.QUEUED, "waiting")
    assert job.problem is not None
    assert job.problem["detail"] == "the PACS is down"


def test_getting_on_ends_the_wait(tmp_path: Path) -> None:
    waits: list[int] = []

    async def handler(run: Run) -> dict[str, Any]:
        await run.progress(len(waits), 9)
        waits.append(run.waits)
        if len(waits) < 4:
            raise Later(MedRestoreError("not now"), 0.01)
        return {}

    async def work() -> Job:
        async with engine(tmp_path, handler) as jobs:
            return await end_of(jobs, (await submit(jobs)).id)

    assert asyncio.run(work()).state is State.DONE
    assert waits == [0, 0, 0, 0]


def test_a_blocked_job_rests_until_retry_across_a_restart(tmp_path: Path) -> None:
    open_ = False

    async def handler(run: Run) -> dict[str, Any]:
        if not open_:
            raise Blocked(MedRestoreError("401"))
        return {}

    async def block() -> Job:
        async with engine(tmp_path, handler) as jobs:
            return await until(jobs, (await submit(jobs)).id, State.BLOCKED)

    async def resume(id: str) -> tuple[State, Job]:
        async with engine(tmp_path, handler) as jobs:
            await asyncio.sleep(0.1)
            before = (await jobs.get(id)).state
            await jobs.retry(id)
            return before, await end_of(jobs, id)

    job = asyncio.run(block())
    assert not job.state.final
    open_ = True
    before, after = asyncio.run(resume(job.id))
    assert (before, after.state) == (State.BLOCKED, State.DONE)


def test_blocked_jobs_count_against_the_limit_and_can_be_cancelled(tmp_path: Path) -> None:
    async def handler(run: Run) -> dict[str, Any]:
        raise Blocked(MedRestoreError("401"))

    async def work() -> tuple[bool, Job]:
        async with engine(tmp_path, handler, unfinished=1) as jobs:
            id = (await submit(jobs)).id
            await until(jobs, id, State.BLOCKED)
            try:
                await submit(jobs)
            except QueueFull:
                return True, await jobs.cancel(id)
            return False, await jobs.cancel(id)

    refused, job = asyncio.run(work())
    assert refused
    assert job.state is State.CANCELLED


def test_retry_of_a_running_job_has_it_run_once_more(tmp_path: Path) -> None:
    runs, go = [], asyncio.Event()

    async def handler(run: Run) -> dict[str, Any]:
        runs.append(run.id)
        await go.wait()
        return {"phase": "completed"}

    async def work() -> Job:
        async with engine(tmp_path, handler) as jobs:
            id = (await submit(jobs)).id
            await until(jobs, id, State.RUNNING)
            for _ in range(3):
                assert (await jobs.retry(id)).state is State.RUNNING
            go.set()
            return await end_of(jobs, id)

    job = asyncio.run(work())
    assert (job.state, job.phase, len(runs)) == (State.DONE, "completed", 2)


def test_retry_of_an_ended_job_runs_it_anew(tmp_path: Path) -> None:
    fail = True

    async def handler(run: Run) -> dict[str, Any]:
        if fail:
            raise MedRestoreError("no")
        return {}

    async def work() -> tuple[Job, Job]:
        nonlocal fail
        async with engine(tmp_path, handler) as jobs:
            first = await end_of(jobs, (await submit(jobs)).id)
            fail = False
            await jobs.retry(first.id)
            return first, await end_of(jobs, first.id)

    first, second = asyncio.run(work())
    assert (first.state, second.state) == (State.FAILED, State.DONE)
    assert second.problem is None


def test_a_phase_is_told_while_a_job_runs_and_by_no_other(tmp_path: Path) -> None:
    async def handler(run: Run) -> dict[str, Any]:
        await run.phase("listing")
        raise Later(MedRestoreError("not now"), 3600)

    async def work() -> list[str | None]:
        phases: list[str | None] = []
        async with engine(tmp_path, handler) as jobs:
            id = (await submit(jobs)).id
            async with asyncio.timeout(LIMIT_S):
                async for job in jobs.watch(id, 0.05):
                    phases.append(job.phase)
                    if job.phase == "waiting":
                        await jobs.cancel(id)
        return phases

    phases = asyncio.run(work())
    assert phases[-1] is None
    assert set(phases) <= {None, "listing", "waiting"}


def test_kinds_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def work() -> State:
        go = asyncio.Event()

        async def slow(run: Run) -> dict[str, Any]:
            await go.wait()
            return {}

        async def quick(run: Run) -> dict[str, Any]:
            return {}

        jobs = JobEngine(JobFolder(tmp_path, 10**9, 0), {"slow": slow, "quick": quick}, JobConfig())
        await jobs.start()
        try:
            for kind in ("slow", "slow", "quick"):
                id = jobs.new_id()
                jobs.folder.make(id)
                await jobs.submit(id, kind, {})
            return (await end_of(jobs, id)).state
        finally:
            go.set()
            await jobs.stop()

    assert asyncio.run(work()) is State.DONE


def test_pages_are_filtered_and_follow_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite3")
    for number in range(5):
        store.add(f"j{number}", "pacs", {"study": f"s{number % 2}"}, None)
    store.add("other", "restore", {"study": "s0"}, None)
    first = store.page("pacs", 2)
    second = store.page("pacs", 9, before=(first[-1].created, first[-1].id))
    assert [job.id for job in first + second] == ["j4", "j3", "j2", "j1", "j0"]
    assert [job.id for job in store.page("pacs", 9, parameter=("study", "s1"))] == ["j3", "j1"]
    claimed = store.claim("pacs")
    assert claimed is not None
    store.enter(claimed.id, "listing")
    assert [job.id for job in store.page("pacs", 9, "listing")] == [claimed.id]
    assert store.page("pacs", 9, "running") == []
    store.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_retry_waits_for_the_run_that_is_being_cancelled(tmp_path: Path, workers: int) -> None:
    """Two runs of one job at a time would work in one folder."""
    runs: list[str] = []
    under_way, most, tidied = 0, 0, asyncio.Event()

    async def handler(run: Run) -> dict[str, Any]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        runs.append(run.id)
        run.folder.mkdir(exist_ok=True)
        try:
            if len(runs) == 1:
                await asyncio.Event().wait()
            await asyncio.sleep(0.05)
            assert run.folder.exists()
            return {}
        finally:
            if len(runs) == 1:
                await tidied.wait()
            under_way -= 1

    async def work() -> Job:
        async with engine(tmp_path, handler, workers=workers) as jobs:
            id = (await submit(jobs)).id
            await until(jobs, id, State.RUNNING)
            while not runs:
                await asyncio.sleep(0.01)
            cancelling = asyncio.create_task(jobs.cancel(id))
            await until(jobs, id, State.CANCELLED)
            retrying = asyncio.create_task(jobs.retry(id))
            await asyncio.sleep(0.1)
            tidied.set()
            await cancelling
            await retrying
            return await end_of(jobs, id)

    assert asyncio.run(work()).state is State.DONE
    assert (len(runs), most) == (2, 1)


def test_retries_at_the_very_end_of_a_run_lose_no_worker(tmp_path: Path) -> None:
    async def handler(run: Run) -> dict[str, Any]:
        return {}

    async def work() -> State:
        async with engine(tmp_path, handler, workers=2) as jobs:
            id = (await submit(jobs)).id
            for _ in range(20):
                await end_of(jobs, id)
                await jobs.retry(id)
            await end_of(jobs, id)
            return (await end_of(jobs, (await submit(jobs)).id)).state

    assert asyncio.run(work()) is State.DONE
