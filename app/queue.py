"""The queue that batches are cut from.

Plain data: no clock, no event loop, no process. `app.batching.Engine` drives it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from typing import Generic, TypeVar

from app.work import Priority, WorkItem


@dataclass(eq=False)
class Entry:
    """An accepted item on its way."""

    item: WorkItem
    order: int  # of acceptance; unique
    due: float = 0.0  # seconds of any one clock: the smaller goes first, and within a class it grows with `order`
    attempts: int = 0  # runs begun
    alone: bool = False  # shares no run, because one has failed; set while it is not waiting
    key: Hashable = field(init=False)
    pixels: int = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.item.key
        self.pixels = self.item.usage.pixels


E = TypeVar("E", bound=Entry)


class WorkQueue(Generic[E]):
    """Entries by when they are due, then by order of acceptance; a batch holds entries of one key only."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[Hashable, Priority], OrderedDict[int, E]] = {}
        self.items = 0
        self.pixels = 0

    def push(self, entry: E) -> None:
        """Puts an entry behind those of its key and priority."""
        lane = self._lanes.setdefault(self._lane(entry), OrderedDict())
        lane[entry.order] = entry
        self.items += 1
        self.pixels += entry.pixels

    def discard(self, entry: E) -> bool:
        """Takes an entry out; false where it is not waiting here."""
        name = self._lane(entry)
        lane = self._lanes.get(name)
        if lane is None or lane.pop(entry.order, None) is None:
            return False
        if not lane:
            del self._lanes[name]
        self.items -= 1
        self.pixels -= entry.pixels
        return True

    def head(self) -> E | None:
        """The entry that goes next."""
        fronts = (next(iter(lane.values())) for lane in self._lanes.values())
        return min(fronts, key=lambda entry: (entry.due, entry.order), default=None)

    def cut(self, items: int, pixels: int) -> list[E]:
        """Takes out the next batch: the head, and others of its key up to `items` entries and `pixels`
        pixels in all. Empty where nothing waits."""
        head = self.head()
        if head is None:
            return []
        room = max(1, min(items, pixels // max(1, head.pixels)))  # equal keys, equal pixels
        mates = [head] if head.alone else list(_first(room, self._same_key(head)))
        for entry in mates:
            self.discard(entry)
        return mates

    def drain(self) -> list[E]:
        """Takes out everything."""
        entries = [entry for lane in self._lanes.values() for entry in lane.values()]
        for entry in entries:
            self.discard(entry)
        return entries

    def _same_key(self, head: E) -> Iterator[E]:
        empty: OrderedDict[int, E] = OrderedDict()
        lanes = (self._lanes.get((head.key, priority), empty).values() for priority in Priority)
        return merge(*lanes, key=lambda entry: (entry.due, entry.order))

    @staticmethod
    def _lane(entry: E) -> tuple[Hashable, Priority]:
        key = (entry.key, entry.order) if entry.alone else entry.key
        return key, entry.item.priority


def _first(count: int, entries: Iterator[E]) -> Iterator[E]:
    for _, entry in zip(range(count), entries, strict=False):
        yield entry
