"""Room for accepted work: who fills it is refused before the work begins, not in the middle."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class QueueLimits:
    """What may be accepted and unfinished at one time, waiting and running together."""

    items: int = 4096
    pixels: int = 64 * 1024**2
    bytes: int = 1024**3  # of inputs


@dataclass
class Usage:
    """An amount of work, or of room for it."""

    items: int = 0
    pixels: int = 0
    bytes: int = 0

    def add(self, other: Usage) -> None:
        self.items += other.items
        self.pixels += other.pixels
        self.bytes += other.bytes

    def subtract(self, other: Usage) -> None:
        self.items -= other.items
        self.pixels -= other.pixels
        self.bytes -= other.bytes


class Admission:
    """Room for one request, given back when its `with` block ends (or `release` is called)."""

    def __init__(self, room: Room, usage: Usage, model: Hashable, pixels: int, background: bool) -> None:
        self.usage = usage
        self.background = background  # what somebody waits for goes before it, so that it makes none of that late
        self.model = model
        self.pixels = pixels  # of the whole request, however few of them wait at one time
        self.expected_s = room.paces.seconds_for(model, pixels)  # of a worker's time
        self.spent_s = 0.0
        self.begun = False  # a part of it runs, or has run
        self.since = time.monotonic()
        self.position = len(room.awaited)  # requests that were there before
        self.wait_s = 0.0  # estimate of how long those would take
        self._room = room

    @property
    def open(self) -> bool:
        """True until the room was given back."""
        return self in self._room.open

    @property
    def left_s(self) -> float:
        """Seconds of a worker that it still needs, as far as can be told."""
        return max(0.0, self.expected_s - self.spent_s)

    def complete(self) -> None:
        """Learns from a request that was done whole how long its kind takes."""
        self._room.paces.record(self.model, self.pixels, self.spent_s)

    def release(self) -> None:
        """Gives the room back; a second call does nothing."""
        if self.open:
            self._room.open.discard(self)
            self._room.used.subtract(self.usage)
            if not self.background:
                self._room.drain.record(self.spent_s)
            if not self._room.awaited:
                self._room.drain.rest()

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Room:
    """Counts what is accepted and unfinished against the limits."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.used = Usage()
        self.open: set[Admission] = set()
        self.paces = Paces()
        self.drain = Drain()

    @property
    def backlog_s(self) -> float:
        """Seconds that one worker needs for all that is admitted."""
        return sum(admission.left_s for admission in self.awaited)

    @property
    def awaited(self) -> list[Admission]:
        """Requests that somebody waits for."""
        return [admission for admission in self.open if not admission.background]

    def overflow(self, wanted: Usage) -> tuple[str, float] | None:
        """What has no room for `wanted` now, and the share of the work at hand that must finish
        first (0 to 1); None where it fits. A request larger than a limit fits when all is done."""
        for name in ("items", "pixels", "bytes"):
            used, asked, limit = (getattr(part, name) for part in (self.used, wanted, self.limits))
            if used and used + asked > limit:
                return name, min(1.0, (used + asked - limit) / used)
        return None

    def take(
        self, wanted: Usage, model: Hashable = None, pixels: int | None = None, background: bool = False
    ) -> Admission:
        """Books the room, whether or not it is there."""
        admission = Admission(self, wanted, model, wanted.pixels if pixels is None else pixels, background)
        if not (background or self.awaited):
            self.drain.start()
        self.used.add(wanted)
        self.open.add(admission)
        return admission


UNMEASURED_S_PER_PIXEL = 1 / 500_000
MEMORY = 0.9  # what the past weighs against the next request


class Paces:
    """Measured seconds per pixel of each model; the past counts less with every request."""

    def __init__(self) -> None:
        self._measured: dict[Hashable, tuple[float, float]] = {}  # pixels and seconds

    def record(self, model: Hashable, pixels: int, seconds: float) -> None:
        before = self._measured.get(model, (0.0, 0.0))
        self._measured[model] = (MEMORY * before[0] + pixels, MEMORY * before[1] + seconds)

    def seconds_for(self, model: Hashable, pixels: int) -> float:
        """As measured of the model; of one that was not, as of all others together, else a guess."""
        known = [self._measured[model]] if model in self._measured else list(self._measured.values())
        total = sum(p for p, _ in known)
        return pixels * (sum(s for _, s in known) / total if total else UNMEASURED_S_PER_PIXEL)


class Drain:
    """How much faster or slower than one worker the service as a whole gets work done, while there is work.

    More workers make it faster; decoding, encoding and the network stack share the processor and make it slower.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None  # the last request that was done, or the first that came
        self._wall_s = 0.0
        self._work_s = 0.0
        self._requests = 0.0

    def start(self) -> None:
        """Work has come where there was none."""
        self._since = self._clock()

    def rest(self) -> None:
        """All work is done."""
        self._since = None

    def record(self, work_s: float) -> None:
        """A request is done that took that much of a worker's time."""
        if not work_s:
            return  # withdrawn before anything was done: it tells nothing
        now = self._clock()
        if self._since is not None:
            self._wall_s = MEMORY * self._wall_s + now - self._since
            self._work_s = MEMORY * self._work_s + work_s
            self._requests = MEMORY * self._requests + 1
        self._since = now

    @property
    def factor(self) -> float | None:
        """Seconds that pass for a second of a worker's time; None where nothing was measured."""
        return self._wall_s / self._work_s if self._work_s else None

    @property
    def request_s(self) -> float:
        """Seconds of a worker's time that a request takes on average; 0 where nothing was measured."""
        return self._work_s / self._requests if self._requests else 0.0
