"""New series of a PACS: by Orthanc's feed of changes, or by asking a plain DICOMweb server again and again.

Both tell a series at least once, after it has become stable, and go on where they were after any
stop. Both begin with what comes after the first call ever: nobody wants an archive of ten years
restored because a rule was written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import date, timedelta
from typing import Protocol

from app.log import event
from app.pacs.candidate import Candidate
from app.pacs.cursor import Cursor, Cursors, Seen
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsDenied, PacsError, PacsGone, PacsUnavailable
from app.pacs.orthanc import Change, Orthanc
from app.pacs.row import SeriesRow

PAGE = 500  # changes of one call
STABLE = "StableSeries"
PATIENCE = 5  # failures at one series, of a PACS that answers otherwise, before it is left out

Take = Callable[[Candidate], Awaitable[None]]
LeaveOut = Callable[[str], None]  # a series that could not be looked at: `gone` or `unreadable`


class Feed(Protocol):
    """What a router asks of a PACS."""

    lag: int  # changes, or series, that are still to be dealt with

    async def poll(self, take: Take, leave_out: LeaveOut) -> bool:
        """Hands what is new to `take`; whether there is more at once. Raises PacsError, and what `take` does: the
        next call begins with that series."""

    async def recent(self, count: int) -> list[Candidate]:
        """The newest series, whatever became of them. Raises PacsError."""


class ChangeFeed:
    """Orthanc's `/changes` from a cursor that is on the disk."""

    def __init__(self, pacs: str, orthanc: Orthanc, cursors: Cursors) -> None:
        self.lag = 0
        self._pacs = pacs
        self._orthanc = orthanc
        self._cursors = cursors
        self._failed = (0, 0)  # number of the change that failed last, and how often

    async def poll(self, take: Take, leave_out: LeaveOut) -> bool:
        """See `Feed`. A database that began anew is read from its beginning."""
        last = await self._orthanc.last()
        cursor = await asyncio.to_thread(self._cursors.get, self._pacs)
        if cursor is None:
            event("change feed begins", pacs=self._pacs, position=last)
            await self._put(Cursor(last))
            return False
        page = await self._orthanc.changes(max(cursor.position - 1, 0), PAGE)
        if last < cursor.position or _other(page.entries[:1], cursor):
            event("change feed began anew: all of it is read again", pacs=self._pacs, position=cursor.position)
            await self._put(Cursor(0))
            return True
        new = [change for change in page.entries if change.number > cursor.position]
        self.lag = last - cursor.position
        newest = {change.identifier: change.number for change in new if change.kind == STABLE}
        for change in new:
            if newest.get(change.identifier) == change.number:
                await self._offer(change, take, leave_out)
                await self._advance(change, last)
        if page.done and (not new or new[-1].number < last):  # what is not told was deleted
            await self._put(Cursor(last))
        elif new:
            await self._advance(new[-1], last)
        self.lag = 0 if page.done else self.lag
        return bool(new) and not page.done

    async def recent(self, count: int) -> list[Candidate]:
        """See `Feed`; looks at the last 20,000 changes at most."""
        found: dict[str, None] = {}
        end = await self._orthanc.last()
        for start in range(end - PAGE, max(end - 40 * PAGE, -PAGE), -PAGE):
            page = await self._orthanc.changes(max(start, 0), min(PAGE, start + PAGE))
            stable = [change.identifier for change in page.entries if change.kind == STABLE]
            found |= dict.fromkeys(reversed(stable))
            if len(found) >= count:
                break
        series = [await self._look(identifier) for identifier in list(found)[:count]]
        return [candidate for candidate in series if candidate]

    async def _offer(self, change: Change, take: Take, leave_out: LeaveOut) -> None:
        try:
            candidate = await self._look(change.identifier)
        except PacsDenied:
            raise
        except (PacsError, ValueError) as error:
            if isinstance(error, PacsUnavailable) and not self._given_up(change.number):
                raise
            leave_out("unreadable")
            return
        if candidate is None:
            leave_out("gone")
        else:
            await take(candidate)

    def _given_up(self, number: int) -> bool:
        """Counts a failure at a change; whether there were too many."""
        self._failed = number, self._failed[1] + 1 if self._failed[0] == number else 1
        return self._failed[1] >= PATIENCE

    async def _look(self, identifier: str) -> Candidate | None:
        try:
            tags = await self._orthanc.series(identifier)
        except PacsGone:
            return None
        return Candidate(tags.study, tags.series, tags.instances or 0, tags.header)

    async def _advance(self, change: Change, last: int) -> None:
        self.lag = max(0, last - change.number)
        await self._put(Cursor(change.number, _mark(change)))

    async def _put(self, cursor: Cursor) -> None:
        await asyncio.to_thread(self._cursors.put, self._pacs, cursor)


class QueryFeed:
    """Series of recent studies, asked for by QIDO-RS; one whose number of instances stays is stable.

    Studies of the last `days` are looked at, by StudyDate, and all since the last call, however long ago.
    """

    def __init__(self, pacs: str, web: DicomWeb, cursors: Cursors, stable_s: float, days: int) -> None:
        self.lag = 0
        self._pacs = pacs
        self._web = web
        self._cursors = cursors
        self._stable_s = stable_s
        self._days = days

    async def poll(self, take: Take, leave_out: LeaveOut) -> bool:
        """See `Feed`."""
        cursor = await asyncio.to_thread(self._cursors.get, self._pacs)
        seen = await asyncio.to_thread(self._cursors.seen, self._pacs)
        today = date.today()
        known_until = today if cursor is None else date.fromordinal(cursor.position)
        rows = await self._rows(min(known_until, today - timedelta(days=self._days)))
        self.lag = 0
        for row in rows:
            await self._judge(row, seen.get(row.series), cursor is None, take, leave_out)
        gone = seen.keys() - {row.series for row in rows}
        await asyncio.to_thread(self._cursors.forget, self._pacs, gone)
        await asyncio.to_thread(self._cursors.put, self._pacs, Cursor(today.toordinal()))
        return False

    async def recent(self, count: int) -> list[Candidate]:
        """See `Feed`; of the days that `poll` looks at."""
        rows = await self._rows(date.today() - timedelta(days=self._days))
        rows.sort(key=lambda row: row.study_date, reverse=True)
        series = [await self._look(row, row.instances or 0) for row in rows[:count]]
        return [candidate for candidate in series if candidate]

    async def _judge(self, row: SeriesRow, known: Seen | None, begins: bool, take: Take, leave_out: LeaveOut) -> None:
        """One step of one series: noted, waited for, or handed on."""
        now = time.time()
        count = row.instances
        if count is None:  # the PACS does not tell: growth after the judgement goes unnoticed
            count = known.instances if known and known.judged else await self._count(row)
        if known is None or known.instances != count:
            await self._see(row, Seen(count, now, judged=begins))
            self.lag += not begins
        elif not known.judged and now - known.since < self._stable_s:
            self.lag += 1
        elif not known.judged:
            candidate = await self._look(row, count)
            if candidate is None:
                leave_out("gone")
            else:
                await take(candidate)
            await self._see(row, Seen(count, known.since, judged=True))

    async def _see(self, row: SeriesRow, seen: Seen) -> None:
        await asyncio.to_thread(self._cursors.see, self._pacs, row.series, seen)

    async def _rows(self, first: date) -> list[SeriesRow]:
        """All series of studies since a day; each once."""
        found: dict[str, SeriesRow] = {}
        offset = 0
        while page := await self._web.series({"StudyDate": f"{first:%Y%m%d}-"}, PAGE, offset):
            fresh = {row.series: row for row in page if row.series not in found}
            if not fresh:
                break  # the PACS ignores `offset`
            found |= fresh
            offset += len(page)
        return list(found.values())

    async def _count(self, row: SeriesRow) -> int:
        return len([instance async for instance in self._web.instances(row.study, row.series)])

    async def _look(self, row: SeriesRow, count: int) -> Candidate | None:
        try:
            async with aclosing(self._web.instances(row.study, row.series)) as instances:
                first = await anext(instances, None)
            if first is None:
                return None
            header = await self._web.header(row.study, row.series, first.sop_instance)
        except PacsGone:
            return None
        return Candidate(row.study, row.series, count, header)


def _mark(change: Change) -> str:
    return f"{change.kind} {change.identifier}"


def _other(entries: list[Change], cursor: Cursor) -> bool:
    """Whether the change at the cursor is not the one that was dealt with: another database has grown past it."""
    return any(e.number == cursor.position and cursor.mark not in ("", _mark(e)) for e in entries)
