"""The guard of super-resolution: what is asked of a result reduced again, and what is told of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import Inconsistent
from models.imaging.image import ValueMap
from models.imaging.reduction import Agreement


@dataclass(frozen=True)
class Consistency:
    """How well all frames of a result, reduced again, agree with the image; differences in its own units."""

    psnr: float | None  # dB, of the frame that agrees worst; None where some frame could not be judged
    rms: float  # over all frames
    largest: float  # of one sample


def consistency_of(frames: Sequence[Agreement | None], values: ValueMap) -> Consistency | None:
    """Of all frames together; None where it was not measured on some, or nothing could be compared."""
    known = [frame for frame in frames if frame is not None]
    if len(known) < len(frames) or not known:
        return None
    judgeable = [frame for frame in known if frame.judgeable]
    if not judgeable:
        return None
    worst = min(frame.decibels for frame in known) if len(judgeable) == len(known) else None
    power = sum(frame.power * frame.judged for frame in known) / max(1, sum(frame.judged for frame in known))
    largest = max(frame.largest for frame in known)
    return Consistency(worst, math.sqrt(power) * values.real_per_unit, largest * values.real_per_unit)


def assert_consistent(found: Agreement | None, floor: float | None, frame: int) -> None:
    """Raises Inconsistent where a frame's result, reduced again, does not agree with it as well as it must."""
    if floor is not None and found is not None and not found.reaches(floor):
        raise Inconsistent(found.decibels if found.judgeable else None, floor, frame)
