"""Answers kept for who asks the same again, and work shared by all who wait for the same.

A kept answer takes memory until others that were wanted more recently push it out. Work that is
under way is done once for all its callers: it ends early only when the last of them has gone, and a
failure is told to all who wait and kept for nobody.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

V = TypeVar("V")
Origin = Literal["hit", "miss", "joined"]


class Shelf(Generic[V]):
    """Values by key, `limit` bytes of them at most; the one that was not wanted for longest goes first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """The value, from now on the one wanted last; None where there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: V, bytes: int) -> None:
        """Keeps a value in place of the key's last one, unless it is larger than the limit by itself."""
        _, before = self._values.pop(key, (None, 0))
        self.bytes -= before
        if bytes > self.limit:
            return
        self._values[key] = (value, bytes)
        self.bytes += bytes
        while self.bytes > self.limit:
            _, (_, freed) = self._values.popitem(last=False)
            self.bytes -= freed


@dataclass(eq=False)
class _Flight(Generic[V]):
    """Work under way and the number of those who wait for it."""

    task: asyncio.Task[V]
    callers: int = 0


class Cache(Generic[V]):
    """A shelf and the work under way. Belongs to one event loop; `measure` gives the bytes of an answer."""

    def __init__(self, limit: int, measure: Callable[[V], int]) -> None:
        self._shelf: Shelf[V] = Shelf(limit)
        self._measure = measure
        self._flights: dict[Hashable, _Flight[V]] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the answers that are kept."""
        return self._shelf.bytes

    async def answer(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, V]]) -> tuple[V, Origin]:
        """What `work` gives, done now ("miss"), before ("hit") or for another caller ("joined").

        Raises what `work` raises. Cancelling the awaiting task withdraws this caller alone.
        """
        kept = self._shelf.get(key)
        if kept is not None:
            return kept, "hit"
        origin: Origin = "joined" if key in self._flights else "miss"
        flight = self._flights[key] if key in self._flights else self._begin(key, work)
        flight.callers += 1
        try:
            await asyncio.wait({flight.task})
            return flight.task.result(), origin
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                self._forget(key, flight)  # a caller who comes now begins anew
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)

    def _begin(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, V]]) -> _Flight[V]:
        flight = self._flights[key] = _Flight(asyncio.create_task(work()))
        flight.task.add_done_callback(partial(self._land, key, flight))
        return flight

    def _land(self, key: Hashable, flight: _Flight[V], task: asyncio.Task[V]) -> None:
        self._forget(key, flight)
        if not task.cancelled() and task.exception() is None:
            self._shelf.put(key, task.result(), self._measure(task.result()))

    def _forget(self, key: Hashable, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
