"""Auto-routing: takes what is new in each PACS and asks the rules what is to be done with it.

The feed of a PACS is the truth; a webhook only has it read sooner, so that a lost one costs seconds.
Each PACS has a task of its own: one that is down, slow or ill-configured holds up no other, and is
asked again with growing pauses. A series may be told twice; the job's key makes it one job.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from app.errors import DiskFull, JobsUnavailable, NotReady, QueueFull
from app.log import event, places
from app.pacs.candidate import Candidate
from app.pacs.errors import PacsError
from app.pacs.feed import Feed
from app.pacs.header import kind_of
from app.pacs.report import FeedStatus
from app.pacs.rule import Route, Work
from app.pacs.rulebook import Rulebook
from models.errors import ImageError, MedRestoreError

BACKOFF_S, BACKOFF_MOST_S = 1.0, 60.0
LATER = (QueueFull, NotReady, DiskFull, JobsUnavailable)  # the service's own troubles: the series waits for them

Submit = Callable[[str, Candidate, Work], Awaitable[tuple[str, bool]]]  # PACS, series, work -> job, whether it is new
Known = Callable[[str, str], Awaitable[bool]]  # PACS, SeriesInstanceUID -> whether a job here made that series


class RouterObserver:
    """Called on the event loop for metrics; override what is published. PACS names come from the settings."""

    def series_judged(self, pacs: str, decision: str) -> None:
        """A series was taken, or not: `Verdict.decision`, `gone`, `unreadable` or `failed`."""

    def feed_read(self, pacs: str, lag: int) -> None:
        """A feed was read; so many changes, or series, are still to come."""


@dataclass(frozen=True)
class Verdict:
    """What the rules say to a series."""

    decision: str  # "taken", "unmatched", "unreadable" or the kind that no rule may take
    reason: str  # in words, without values of the series
    route: Route | None = None
    unmet: dict[str, str] = field(default_factory=dict)  # routes that were asked in vain -> why


@dataclass
class FeedState:
    """How one PACS is."""

    read: float | None = None  # last time, seconds since 1970
    problem: str | None = None  # since then
    failures: int = 0  # in a row
    bell: asyncio.Event = field(default_factory=asyncio.Event)


class Router:
    """Belongs to one event loop."""

    def __init__(
        self,
        feeds: Mapping[str, Feed],
        rulebook: Rulebook,
        submit: Submit,
        known: Known,
        every_s: float,
        observer: RouterObserver | None = None,
    ) -> None:
        self.feeds = feeds
        self.rulebook = rulebook
        self.states = {pacs: FeedState() for pacs in feeds}
        self._submit = submit
        self._known = known
        self._every_s = every_s
        self._observer = observer or RouterObserver()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to read the feeds."""
        self._tasks = [asyncio.create_task(self._follow(pacs), name=f"routing {pacs}") for pacs in self.feeds]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Has the feeds read now rather than in some seconds; not those of a PACS that is out of order."""
        for state in self.states.values():
            state.bell.set()

    def status(self, pacs: str) -> FeedStatus:
        """How one feed is."""
        state = self.states[pacs]
        age_s = None if state.read is None else max(0.0, time.time() - state.read)
        return FeedStatus(read_s_ago=age_s, lag=self.feeds[pacs].lag, problem=state.problem)

    # -- judging ------------------------------------------------------------------------------

    async def judge(self, pacs: str, candidate: Candidate) -> Verdict:
        """What the rules say now; changes nothing."""
        try:
            kind = kind_of(candidate.header)
        except ImageError:
            return Verdict("unreadable", "its header cannot be read")
        if kind.name != "ours" and await self._known(pacs, candidate.series):
            return Verdict("ours", "made by a job of this service")
        if kind.name != "image":
            return Verdict(kind.name, kind.reason)
        unmet: dict[str, str] = {}
        for route, why in self.rulebook.rules().explain(pacs, candidate):
            if why is None:
                return Verdict("taken", f"taken by {route.name}", route, unmet)
            unmet[route.name] = why
        return Verdict("unmatched", "no route takes it" if unmet else "there are no routes", unmet=unmet)

    async def recent(self, pacs: str, count: int) -> list[tuple[Candidate, Verdict]]:
        """The newest series of a PACS with what the rules say to them. Raises PacsError."""
        return [(found, await self.judge(pacs, found)) for found in await self.feeds[pacs].recent(count)]

    # -- following ----------------------------------------------------------------------------

    async def _follow(self, pacs: str) -> None:
        """Reads one feed for ever."""
        state = self.states[pacs]
        while True:
            state.bell.clear()
            try:
                more = await self._read(pacs)
            except MedRestoreError as error:
                await asyncio.sleep(self._failed(pacs, str(error), getattr(error, "retry_after_s", None)))
            except sqlite3.Error as error:
                event("routing cannot note what it did", logging.ERROR, pacs=pacs, **places(error))
                await asyncio.sleep(self._failed(pacs, "the cursor cannot be written"))
            except Exception as error:  # noqa: BLE001  (nothing unforeseen may end the routing of a PACS)
                event("unexpected error", logging.ERROR, pacs=pacs, **places(error))
                await asyncio.sleep(self._failed(pacs, "an error inside the service"))
            else:
                state.read, state.problem, state.failures = time.time(), None, 0
                if not more:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._every_s):
                            await state.bell.wait()

    async def _read(self, pacs: str) -> bool:
        """One page of a feed; nothing before the first sound rules, so that nothing is passed over unjudged."""
        if not self.rulebook.rules().route and self.rulebook.problem:
            return False
        feed = self.feeds[pacs]
        more = await feed.poll(lambda found: self._take(pacs, found), lambda why: self._book(pacs, why))
        self._observer.feed_read(pacs, feed.lag)
        return more

    async def _take(self, pacs: str, candidate: Candidate) -> None:
        """Has a series restored, where a route says so. Raises MedRestoreError where that must wait."""
        verdict = await self.judge(pacs, candidate)
        if verdict.route is None:
            self._book(pacs, verdict.decision)
            return
        try:
            job, created = await self._submit(pacs, candidate, verdict.route)
        except (*LATER, PacsError):
            raise
        except MedRestoreError as error:  # a model that is gone, most likely: others must not wait for it
            self._book(pacs, "failed")
            event("series not routed", logging.ERROR, pacs=pacs, route=verdict.route.name, reason=str(error))
            return
        self._book(pacs, "taken" if created else "repeated")
        event("series routed", pacs=pacs, route=verdict.route.name, job=job, created=created)

    def _book(self, pacs: str, decision: str) -> None:
        self._observer.series_judged(pacs, decision)

    def _failed(self, pacs: str, problem: str, asked_s: float | None = None) -> float:
        """Notes a failure; how long to wait, in seconds."""
        state = self.states[pacs]
        if problem != state.problem:
            event("change feed cannot be read", logging.WARNING, pacs=pacs, reason=problem)
        state.problem = problem
        wait_s: float = min(BACKOFF_S * 2**state.failures, BACKOFF_MOST_S) * random.uniform(0.8, 1.2)
        state.failures = min(state.failures + 1, 16)
        return max(wait_s, min(asked_s or 0.0, 10 * BACKOFF_MOST_S))
