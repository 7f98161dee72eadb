"""What a handler of jobs has to do with: one run of one job, and the ways to say that it cannot go on now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from app.jobs.store import Job
from models.errors import MedRestoreError


class Later(Exception):
    """Raised by a handler that cannot go on now: the job waits `wait_s` and is run again, however often."""

    def __init__(self, reason: MedRestoreError, wait_s: float) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.wait_s = wait_s


class Blocked(Exception):
    """Raised by a handler that cannot go on until somebody acts: the job rests until `JobEngine.retry`."""

    def __init__(self, reason: MedRestoreError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Run:
    """What a handler gets: one run of one job."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        advance: Callable[[int, int], Awaitable[None]],
        enter: Callable[[str], Awaitable[None]],
    ) -> None:
        self.id = job.id
        self.parameters = job.parameters
        self.created = job.created
        self.waits = job.waits  # times that the job had to wait since it last got on
        self.waiting_since = job.waiting_since
        self.folder = folder
        self._done = job.progress
        self._advance = advance
        self._enter = enter

    async def progress(self, done: int, total: int) -> None:
        """Tells how far the work is, in steps of the handler's own. Who gets on has not had to wait."""
        if done > self._done:
            self._done, self.waits, self.waiting_since = done, 0, None
        await self._advance(done, total)

    async def phase(self, word: str) -> None:
        """Tells what the work is about from now on."""
        await self._enter(word)


Handler = Callable[[Run], Awaitable[dict[str, Any]]]
