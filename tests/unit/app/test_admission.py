"""What the engine takes in, and what it says to those whom it turns away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from app.admission import Drain, Usage
from app.batching import QueueLimits
from app.errors import (
    QueueFull,
)
from tests.scripted_worker import Bench, Script, until


def test_a_deadline_that_cannot_be_met_is_refused_at_once(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            admit, usage = bench.engine.admit, Usage(1, 1_000_000, 1)
            bench.engine._room.paces.record("model", 1_000_000, 0.6)
            with admit(usage, "model", deadline=time.monotonic() + 0.1):  # nothing else is there, so it may try
                with pytest.raises(QueueFull) as caught:  # 0.6 s each, one after the other
                    admit(usage, "model", deadline=time.monotonic() + 1.0)
                assert caught.value.reason == "deadline"
                assert bench.recorder.shed_reasons == ["deadline"]
                with admit(usage, "model", deadline=time.monotonic() + 3.0):
                    pass

    asyncio.run(main())


def test_the_backlog_counts_requests_that_are_still_being_received(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            drain = bench.engine._room.drain = Drain(iter([0.0, 1.0]).__next__)
            drain.start()
            drain.record(0.5)
            bench.engine.callers = lambda: 4  # of which one asks, and none is admitted
            assert bench.engine.backlog_s == pytest.approx(3 * 0.5 * 2)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(QueueLimits(items=2), "items"), (QueueLimits(pixels=512), "pixels"), (QueueLimits(bytes=2048), "bytes")],
)
def test_a_full_queue_refuses_and_says_when_to_return(
    built_repository: Path, script: Script, limits: QueueLimits, reason: str
):
    async def main() -> None:
        async with Bench(built_repository, limits=limits) as bench:
            script.gate.clear()
            tasks = bench.submit(0, 1)
            await until(lambda: script.runs == [[0]])
            with pytest.raises(QueueFull) as caught:
                await bench.engine.submit(bench.item(2))
            assert caught.value.reason == reason
            assert caught.value.retry_after_s >= 1
            assert bench.recorder.shed_reasons == [reason]
            script.gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            await bench.engine.submit(bench.item(2))

    asyncio.run(main())


def test_retry_after_grows_with_the_pixels_that_wait_and_shrinks_with_workers(built_repository: Path, script: Script):
    async def wait_for(pixels: int, devices: tuple[str, ...] = ("cpu",)) -> float:
        limits = QueueLimits(pixels=100_000_000)
        async with Bench(built_repository, limits=limits, devices=devices) as bench:
            await until(lambda: all(worker.state == "idle" for worker in bench.engine.workers))
            bench.engine._room.paces.record("model", 1_000_000, 1.0)
            with bench.engine.admit(Usage(1, pixels, 1), "model"), pytest.raises(QueueFull) as caught:
                bench.engine.admit(Usage(1, 100_000_000, 1), "model")
            assert caught.value.position == 1
            assert caught.value.wait_s == pytest.approx(caught.value.retry_after_s, abs=1)
            return caught.value.retry_after_s

    assert asyncio.run(wait_for(20_000_000)) == pytest.approx(20, abs=1)
    assert asyncio.run(wait_for(60_000_000)) == pytest.approx(60, abs=1)
    assert asyncio.run(wait_for(60_000_000, ("cpu", "cpu"))) == pytest.approx(30, abs=1)


def test_an_admitted_request_is_never_refused_in_its_middle(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, limits=QueueLimits(items=3)) as bench:
            with bench.engine.admit(Usage(3, 3 * 256, 3 * 1024)) as admission:
                with pytest.raises(QueueFull):
                    await bench.engine.submit(bench.item(9))
                for tag in (0, 1, 2):
                    await bench.engine.submit(bench.item(tag, admission=admission))
            await bench.engine.submit(bench.item(9))
            with pytest.raises(ValueError, match="already released"):
                await bench.engine.submit(bench.item(3, admission=admission))

    asyncio.run(main())
