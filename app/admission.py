"""Room for accepted work: who fills it is refused before the work begins, not in the middle."""

from __future__ import annotations

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

    def __init__(self, room: Room, usage: Usage) -> None:
        self._room: Room | None = room
        self.usage = usage

    @property
    def open(self) -> bool:
        """True until the room was given back."""
        return self._room is not None

    def release(self) -> None:
        """Gives the room back; a second call does nothing."""
        room, self._room = self._room, None
        if room is not None:
            room.used.subtract(self.usage)

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Room:
    """Counts what is accepted and unfinished against the limits."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.used = Usage()

    def overflow(self, wanted: Usage) -> tuple[str, float] | None:
        """What has no room for `wanted` now, and the share of the work at hand that must finish
        first (0 to 1); None where it fits. A request larger than a limit fits when all is done."""
        for name in ("items", "pixels", "bytes"):
            used, asked, limit = (getattr(part, name) for part in (self.used, wanted, self.limits))
            if used and used + asked > limit:
                return name, min(1.0, (used + asked - limit) / used)
        return None

    def take(self, wanted: Usage) -> Admission:
        """Books the room, whether or not it is there."""
        self.used.add(wanted)
        return Admission(self, wanted)


UNMEASURED_PIXELS_PER_S = 500_000.0


@dataclass
class Pace:
    """Measured speed; the past counts less with every run."""

    pixels: float = UNMEASURED_PIXELS_PER_S
    seconds: float = 1.0

    def record(self, pixels: int, seconds: float) -> None:
        self.pixels = 0.9 * self.pixels + pixels
        self.seconds = 0.9 * self.seconds + seconds

    def seconds_for(self, pixels: int) -> float:
        return pixels * self.seconds / self.pixels
