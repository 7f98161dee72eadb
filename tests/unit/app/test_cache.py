"""Kept answers stay within their bytes, and the same work is done once for all who wait for it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cache import Cache, Shelf
from models.errors import CorruptImage

STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 12)), max_size=60)


@given(limit=st.integers(0, 20), steps=STEPS)
def test_a_shelf_keeps_what_was_wanted_last_within_its_bytes(limit: int, steps: list[tuple[str, int | None]]) -> None:
    shelf: Shelf[int] = Shelf(limit)
    wanted: OrderedDict[str, int] = OrderedDict()  # key -> bytes, which are its value too; last wanted last
    for key, size in steps:
        if size is None:
            assert shelf.get(key) == wanted.get(key)
            if key in wanted:
                wanted.move_to_end(key)
        else:
            shelf.put(key, size, size)
            wanted.pop(key, None)
            if size <= limit:
                wanted[key] = size
            while sum(wanted.values()) > limit:
                wanted.popitem(last=False)
        assert shelf.bytes == sum(wanted.values()) <= limit
    assert {key: shelf.get(key) for key in "abcdef"} == {key: wanted.get(key) for key in "abcdef"}


class Work:
    """Work that waits to be told its end; counts its beginnings and cancellations."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> bytes:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return b"answer"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def callers(cache: Cache[bytes], work: Work, count: int, key: str = "k") -> list[asyncio.Task[Any]]:
    """Tasks that wait for the work, the first of which began it."""
    tasks = [asyncio.create_task(cache.answer(key, work)) for _ in range(count)]
    while not work.begun:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def test_the_same_in_flight_is_done_once_and_then_kept() -> None:
    async def test() -> None:
        cache: Cache[bytes] = Cache(100, len)
        work = Work()
        tasks = await callers(cache, work, 3)
        work.gate.set()
        answers = await asyncio.gather(*tasks)
        assert answers == [(b"answer", "miss"), (b"answer", "joined"), (b"answer", "joined")]
        assert await cache.answer("k", work) == (b"answer", "hit")
        assert (work.begun, cache.bytes) == (1, 6)
        assert (await cache.answer("other", work))[1] == "miss"

    run(test())


@pytest.mark.parametrize("who", [0, 1, 2])
def test_one_who_hangs_up_leaves_the_others_untouched(who: int) -> None:
    async def test() -> None:
        cache: Cache[bytes] = Cache(100, len)
        work = Work()
        tasks = await callers(cache, work, 3)
        tasks.pop(who).cancel()
        await asyncio.sleep(0)
        work.gate.set()
        assert [answer for answer, _ in await asyncio.gather(*tasks)] == [b"answer"] * 2
        assert (work.begun, work.cancelled) == (1, 0)

    run(test())


def test_work_ends_when_the_last_has_gone_and_begins_anew_for_the_next() -> None:
    async def test() -> None:
        cache: Cache[bytes] = Cache(100, len)
        work = Work()
        tasks = await callers(cache, work, 3)
        for task in tasks:
            assert work.cancelled == 0
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (work.begun, work.cancelled, cache.bytes) == (1, 1, 0)
        work.gate.set()
        assert await cache.answer("k", work) == (b"answer", "miss")

    run(test())


def test_a_failure_is_told_to_all_and_kept_for_nobody() -> None:
    async def test() -> None:
        cache: Cache[bytes] = Cache(100, len)
        work = Work()
        tasks = await callers(cache, work, 3)
        work.error = CorruptImage("cut short")
        work.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, CorruptImage) for error in found)
        work.error = None
        assert await cache.answer("k", work) == (b"answer", "miss")
        assert work.begun == 2

    run(test())


def test_what_is_too_large_to_keep_is_answered_all_the_same() -> None:
    async def test() -> None:
        cache: Cache[bytes] = Cache(5, len)
        work = Work()
        work.gate.set()
        assert [(await cache.answer("k", work))[1] for _ in range(2)] == ["miss", "miss"]
        assert cache.bytes == 0

    run(test())
