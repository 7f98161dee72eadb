"""Work whose caller has gone is cancelled, and the gate counts who is in."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import Cancelled, QueueFull
from app.gate import Gate
from app.hangup import unless_gone
from models.errors import CorruptImage


async def never() -> dict[str, str]:
    await asyncio.Event().wait()
    return {}


def test_the_result_is_handed_on() -> None:
    async def work() -> int:
        return 7

    assert asyncio.run(_within(never, work)) == 7


def test_errors_are_handed_on() -> None:
    async def work() -> int:
        raise CorruptImage("cut short")

    with pytest.raises(CorruptImage):
        asyncio.run(_within(never, work))


def test_work_ends_when_the_caller_goes() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise

    async def receive() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    with pytest.raises(Cancelled):
        asyncio.run(_within(receive, work))
    assert ended == [True]


def full(reason: str) -> QueueFull:
    return QueueFull(reason, 1.0)


def test_the_gate_bounds_number_and_bytes() -> None:
    gate = Gate(requests=2, bytes=100)
    with gate.enter(60, full):
        with pytest.raises(QueueFull, match="request bytes"):
            gate.enter(60, full).__enter__()
        with gate.enter(40, full), pytest.raises(QueueFull, match=r"\(requests\)"):
            gate.enter(0, full).__enter__()
        assert (gate.requests, gate.bytes) == (1, 60)
    assert (gate.requests, gate.bytes) == (0, 0)


def test_the_gate_opens_again_after_an_error() -> None:
    gate = Gate(requests=1, bytes=10)

    def fail() -> None:
        with gate.enter(10, full):
            raise CorruptImage("bad")

    for _ in range(3):
        with pytest.raises(CorruptImage):
            fail()
    assert gate.bytes == 0


async def _within(receive, work):  # type: ignore[no-untyped-def]
    return await asyncio.wait_for(unless_gone(receive, work()), 10)
