"""New series of a PACS: by Orthanc's feed of changes, or by asking a plain DICOMweb server again and again.

Both tell a series at least once, after it has become stable, and go on where they were after any
stop. Both begin with what comes after the first call ever: nobody wants an archive of ten years
restored because a rule was written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import date, timedelta
from typing import Any, Protocol

from app.log import event
from app.pacs.candidate import Candidate
from app.pacs.cursor import Cursor, Cursors, Seen
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsDenied, PacsError, PacsGone, PacsMalformed, PacsRefused, PacsUnavailable
from app.pacs.header import kind_of
from app.pacs.orthanc import Change, Orthanc
from app.pacs.row import InstanceRow, SeriesRow
from models.errors import ImageError

PAGE = 500  # changes of one call
STABLE = "StableSeries"
DAY = "day"  # mark of a cursor whose position is a day, of a PACS that has no feed of changes
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


class Patience:
    """Tells when a series, at which the PACS fails again and again, is to hold up the others no longer."""

    def __init__(self) -> None:
        self._at = ""
        self._failures = 0  # in a row

    async def offer(self, at: str, look: Awaitable[Candidate | None], take: Take, leave_out: LeaveOut) -> None:
        """Hands a series on once it was looked at. Raises what `look` does while there is patience, and what `take`
        does."""
        try:
            candidate = await look
        except (PacsError, ValueError) as error:
            if not self.over(at, error):
                raise
            leave_out("unreadable")
            return
        if candidate is None:
            leave_out("gone")
        else:
            await take(candidate)

    def over(self, at: str, error: PacsError | ValueError) -> bool:
        """Books a failure at a series; whether it is to be left out now."""
        if isinstance(error, PacsDenied):
            return False
        self._at, self._failures = at, self._failures + 1 if at == self._at else 1
        return not isinstance(error, PacsUnavailable) or self._failures >= PATIENCE


class ChangeFeed:
    """Orthanc's `/changes` from a cursor that is on the disk."""

    def __init__(self, pacs: str, orthanc: Orthanc, cursors: Cursors) -> None:
        self.lag = 0
        self._pacs = pacs
        self._orthanc = orthanc
        self._cursors = cursors
        self._patience = Patience()

    async def poll(self, take: Take, leave_out: LeaveOut) -> bool:
        """See `Feed`. A database that began anew is read from its beginning."""
        last = await self._orthanc.last()
        cursor = await asyncio.to_thread(self._cursors.get, self._pacs)
        if cursor is None or cursor.mark == DAY:
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
                await self._patience.offer(str(change.number), self._look(change.identifier), take, leave_out)
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
        return await _readable([self._look(identifier) for identifier in list(found)[:count]])

    async def _look(self, identifier: str) -> Candidate | None:
        try:
            tags = await self._orthanc.series(identifier, _decides)
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
        self._patience = Patience()

    async def poll(self, take: Take, leave_out: LeaveOut) -> bool:
        """See `Feed`."""
        cursor = await asyncio.to_thread(self._cursors.get, self._pacs)
        seen = await asyncio.to_thread(self._cursors.seen, self._pacs)
        if cursor is not None and cursor.mark != DAY:  # the PACS had a feed of changes when it was written
            cursor = None
        today = date.today()
        known_until = today if cursor is None else date.fromordinal(cursor.position)
        rows = await self._rows(min(known_until, today - timedelta(days=self._days)))
        self.lag = 0
        for row in rows:
            await self._judge(row, seen.get(row.series), cursor is None, take, leave_out)
        gone = seen.keys() - {row.series for row in rows}
        await asyncio.to_thread(self._cursors.forget, self._pacs, gone)
        await asyncio.to_thread(self._cursors.put, self._pacs, Cursor(today.toordinal(), DAY))
        return False

    async def recent(self, count: int) -> list[Candidate]:
        """See `Feed`; of the days that `poll` looks at."""
        rows = await self._rows(date.today() - timedelta(days=self._days))
        rows.sort(key=lambda row: row.study_date, reverse=True)
        return await _readable([self._look(row, row.instances or 0) for row in rows[:count]])

    async def _judge(self, row: SeriesRow, known: Seen | None, begins: bool, take: Take, leave_out: LeaveOut) -> None:
        """One step of one series: noted, waited for, or handed on."""
        now = time.time()
        count = row.instances
        if count is None and known and known.judged:
            count = known.instances  # the PACS does not tell: growth after the judgement goes unnoticed
        elif count is None:
            count = await self._count(row, known.instances if known else 0)
        if known is None or known.instances != count:
            await self._see(row, Seen(count, now, judged=begins))
            self.lag += not begins
        elif not known.judged and now - known.since < self._stable_s:
            self.lag += 1
        elif not known.judged:
            await self._patience.offer(row.series, self._look(row, count), take, leave_out)
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

    async def _count(self, row: SeriesRow, otherwise: int) -> int:
        """How many instances there are; `otherwise` where that cannot be found out."""
        try:
            return len([instance async for instance in self._web.instances(row.study, row.series)])
        except PacsError as error:
            if not self._patience.over(row.series, error):
                raise
            return otherwise

    async def _look(self, row: SeriesRow, count: int) -> Candidate | None:
        try:
            instance = await self._instance(row)
            if instance is None:
                return None
            header = await self._web.header(row.study, row.series, instance.sop_instance)
        except PacsGone:
            return None
        return Candidate(row.study, row.series, count, header)

    async def _instance(self, row: SeriesRow) -> InstanceRow | None:
        """The first instance which says what the series is, as far as the list tells; else the first."""
        first: InstanceRow | None = None
        looked = 0
        async with aclosing(self._web.instances(row.study, row.series)) as instances:
            async for one in instances:
                first, looked = first or one, looked + 1
                if _decides({"SOPClassUID": one.sop_class, "ImageType": list(one.image_type)}):
                    return one
                if looked == PAGE:
                    break
        return first


def _decides(header: Mapping[str, Any]) -> bool:
    """Whether one instance tells what its series is: an image does; a localizer may lie in front of images."""
    with suppress(ImageError):
        return kind_of(header).name in ("image", "ours")
    return False


async def _readable(looks: Sequence[Coroutine[Any, Any, Candidate | None]]) -> list[Candidate]:
    """Those series that can be read. Raises PacsUnavailable, PacsDenied."""
    found = await asyncio.gather(*looks, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, PacsMalformed | PacsRefused | ValueError):
            raise one
    return [one for one in found if isinstance(one, Candidate)]


def _mark(change: Change) -> str:
    return f"{change.kind} {change.identifier}"


def _other(entries: list[Change], cursor: Cursor) -> bool:
    """Whether the change at the cursor is not the one that was dealt with: another database has grown past it."""
    return any(e.number == cursor.position and cursor.mark not in ("", _mark(e)) for e in entries)
