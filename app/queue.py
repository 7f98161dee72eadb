"""The queue that batches are cut from.

Plain data: no clock, no event loop, no process. `app.batching.Engine` drives it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.work import WorkItem


@dataclass(eq=False)
class Entry:
    """An accepted item on its way."""

    item: WorkItem
    order: int  # of acceptance; unique
    due: float = 0.0  # seconds of any one clock: the smaller goes first
    attempts: int = 0  # runs begun
    alone: bool = False  # shares no run: one has failed, or its shape was not tried; set while it is not waiting
    key: Hashable = field(init=False)
    pixels: int = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.item.key
        self.pixels = self.item.usage.pixels


E = TypeVar("E", bound=Entry)


class WorkQueue(Generic[E]):
    """Entries by when they are due, then by order of acceptance; a batch holds entries of one key only."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, list[E]] = {}  # of one key each, sorted
        self.items = 0
        self.pixels = 0

    def push(self, entry: E) -> None:
        """Puts an entry in its place among those of its key."""
        insort(self._lanes.setdefault(_lane(entry), []), entry, key=_rank)
        self.items += 1
        self.pixels += entry.pixels

    def discard(self, entry: E) -> bool:
        """Takes an entry out; false where it is not waiting here."""
        lane = self._lanes.get(_lane(entry), [])
        place = bisect_left(lane, _rank(entry), key=_rank)
        if place == len(lane) or lane[place] is not entry:
            return False
        del lane[place]
        if not lane:
            del self._lanes[_lane(entry)]
        self.items -= 1
        self.pixels -= entry.pixels
        return True

    def head(self, fit: Callable[[E], bool] = lambda entry: True) -> E | None:
        """The entry that goes next, of those that fit; all of a key fit, or none."""
        return min((lane[0] for lane in self._lanes.values() if fit(lane[0])), key=_rank, default=None)

    def cut(self, head: E, items: int, pixels: int) -> list[E]:
        """Takes out the next batch: a head, and others of its key up to `items` entries and `pixels` pixels in all."""
        room = max(1, min(items, pixels // max(1, head.pixels)))  # equal keys, equal pixels
        batch = self._lanes[_lane(head)][:room]
        for entry in batch:
            self.discard(entry)
        return batch

    def drain(self) -> list[E]:
        """Takes out everything."""
        entries = [entry for lane in self._lanes.values() for entry in lane]
        for entry in entries:
            self.discard(entry)
        return entries


def _rank(entry: Entry) -> tuple[float, int]:
    return entry.due, entry.order


def _lane(entry: Entry) -> Hashable:
    return (entry.key, entry.order) if entry.alone else entry.key
