"""The instances of one job on their way: fetched ahead, several being restored, stored in batches.

    PACS ──fetch──> inbox ──make──> outbox ──store──> PACS
         at most `ahead` files   `width` at once   batches of the peer's size

What is bounded is files on the disk; in memory are only the instances being restored. When one stage fails
for good, the others end; what was not confirmed by then is pending, and done by the next run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import IdentityDiffers, Inconsistent, Quarantined, RunFailed, WorkerLost, status_of
from app.jobs.run import Run
from app.noise import together
from app.pacs.dicomweb import DicomWeb, Failure
from app.pacs.errors import PacsGone, PacsMalformed, PacsRefused, PacsUnavailable
from app.pacs.instance import Instance, Instances, Outcome
from app.pacs.key import Order
from app.pacs.maker import Made, Maker
from app.pacs.peer import Peer
from models.errors import ImageError, MedRestoreError

if TYPE_CHECKING:
    from models.imaging.dicom import Head

FETCHERS = 4  # single instances asked for at one time
ATTEMPTS = 3  # at an instance that fails although others come
LONG_S = 600.0  # a job that waited this long without any instance has its attempts counted, too
NOT_RESTORED = {"ours", "report", "screen", "localizer"}  # kinds that are no images of the series
PROCESSING_FAILURE = 0x0110


@dataclass(frozen=True)
class Bounds:
    """How much is on its way at one time, instances."""

    ahead: int = 8  # fetched and not yet restored
    width: int = 4  # being restored
    outbox: int = 16  # restored and not yet stored, beside those in the batch


@dataclass(frozen=True)
class _Fetched:
    instance: Instance
    path: Path


class Flow:
    """One pass over what is pending of a job."""

    def __init__(
        self,
        run: Run,
        order: Order,
        web: DicomWeb,
        peer: Peer,
        instances: Instances,
        maker: Maker,
        bounds: Bounds,
        observe: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        """`run.folder` is an empty folder; `observe` is told each outcome."""
        self._run = run
        self._order = order
        self._web = web
        self._peer = peer
        self._instances = instances
        self._maker = maker
        self._bounds = bounds
        self._observe = observe
        self._room = asyncio.Semaphore(bounds.ahead + bounds.width)
        self._inbox: asyncio.Queue[_Fetched | None] = asyncio.Queue()
        self._outbox: asyncio.Queue[Made | None] = asyncio.Queue(bounds.outbox)
        self._patient: tuple[str, ...] | None = None
        self._came = self._stored = 0  # instances
        self._missed: list[tuple[Instance, PacsUnavailable]] = []  # that did not come
        self._deferred: MedRestoreError | None = None  # what kept an instance back for the next run

    async def work(self) -> None:
        """Brings all that is pending to its end. Raises PacsError, DiskFull, OSError and what ends the whole job."""
        pending = await asyncio.to_thread(self._instances.pending, self._run.id)
        counts = await asyncio.to_thread(self._instances.counts, self._run.id)
        self._stored = counts[Outcome.STORED] + counts[Outcome.VERIFIED]
        if pending:
            makers = (self._make() for _ in range(self._bounds.width))
            await together([self._fetch(pending, sum(counts.values())), *makers, self._store()])
        if self._deferred:
            raise self._deferred

    # -- from the PACS ------------------------------------------------------------------------

    async def _fetch(self, pending: dict[str, Instance], total: int) -> None:
        """The series as one stream where most of it is wanted; the rest one by one."""
        left = dict(pending)
        if len(left) > 1 and 2 * len(left) >= total:
            await self._stream(left)
        rest = iter(list(left.values()))
        await together([self._fetch_singly(rest) for _ in range(FETCHERS)])
        await self._judge_missed()
        for _ in range(self._bounds.width):
            self._inbox.put_nowait(None)

    async def _stream(self, left: dict[str, Instance]) -> None:
        """Takes out of `left` what comes. A stream that breaks off, or is none, leaves the rest."""
        folder = _folder(self._run.folder / "series")
        try:
            async with aclosing(self._web.retrieve_series(self._order.study, self._order.series, folder)) as paths:
                while left and (path := await self._next(paths)):
                    await self._receive(path, left)
        except PacsUnavailable:
            await self._web.reachable()  # one instance may be what breaks the stream
        except (PacsMalformed, PacsRefused, PacsGone):
            pass  # single calls tell which instance it is

    async def _next(self, paths: AsyncGenerator[Path, None]) -> Path | None:
        """The next file of a stream, once there is room for it."""
        await self._room.acquire()
        path = None
        try:
            path = await anext(paths, None)
        finally:
            if path is None:
                self._room.release()
        return path

    async def _receive(self, path: Path, left: dict[str, Instance]) -> None:
        """Hands on a file of the stream, or drops what is not wanted of it or cannot be told."""
        instance = None
        with suppress(ImageError):  # asked for by its name it will be known
            instance = left.pop((await self._maker.head(path)).sop_instance, None)
        if instance is None:
            path.unlink()
            self._room.release()
        else:
            self._take(instance, path)

    async def _fetch_singly(self, rest: Iterator[Instance]) -> None:
        folder = _folder(self._run.folder / "single")
        for instance in rest:
            await self._room.acquire()
            path = folder / f"{instance.position:06}.dcm"
            try:
                await self._web.retrieve(self._order.study, self._order.series, instance.source, path)
            except PacsGone:
                await self._settle(instance, Outcome.GONE)
            except (PacsRefused, PacsMalformed) as error:
                await self._settle(instance, Outcome.FAILED, f"pacs_{error.reason}")
            except PacsUnavailable as error:
                await self._web.reachable()  # else it is the PACS, not the instance
                self._missed.append((instance, error))
                if len(self._missed) >= FETCHERS and not self._came:
                    raise
            else:
                self._take(instance, path)
                continue
            self._room.release()

    def _take(self, instance: Instance, path: Path) -> None:
        self._came += 1
        self._inbox.put_nowait(_Fetched(instance, path))

    async def _judge_missed(self) -> None:
        """What did not come counts against the instance where others came, or where that goes on for long; else
        against the PACS. Raises PacsUnavailable."""
        since = self._run.waiting_since
        long = since is not None and time.time() - since > LONG_S
        for instance, error in self._missed:
            if not self._came and not long:
                raise error
            await self._defer(instance, error, f"pacs_{error.reason}")

    # -- restored -----------------------------------------------------------------------------

    async def _make(self) -> None:
        while fetched := await self._inbox.get():
            try:
                made = await self._made(fetched)
            finally:
                fetched.path.unlink(missing_ok=True)
                self._room.release()
            if made:
                await self._outbox.put(made)
        await self._outbox.put(None)

    async def _made(self, fetched: _Fetched) -> Made | None:
        """The derived instance; None, with its outcome noted, where there is none."""
        instance = fetched.instance
        target = _folder(self._run.folder / "derived") / f"{instance.position:06}.dcm"
        try:
            head = await self._maker.head(fetched.path)
            self._assert_ours(instance, head)
            if head.kind.name in NOT_RESTORED:
                await self._settle(instance, Outcome.SKIPPED, head.kind.name)
                return None
            return await self._maker.make(instance.source, fetched.path, target)
        except WorkerLost as error:
            await self._defer(instance, error, status_of(error).slug)
        except (ImageError, RunFailed, Quarantined, Inconsistent) as error:
            target.unlink(missing_ok=True)
            measured = replace(instance, consistency=getattr(error, "measured_db", None))
            await self._settle(measured, Outcome.FAILED, getattr(error, "reason", None) or status_of(error).slug)
        return None

    def _assert_ours(self, instance: Instance, head: Head) -> None:
        """Whether the PACS sent what was asked for, and all of one patient. Raises IdentityDiffers."""
        asked = (instance.source, self._order.series, self._order.study)
        if (head.sop_instance, head.series, head.study) != asked:
            raise IdentityDiffers("the PACS sent an object of another study or series than was asked for")
        self._patient = self._patient or head.patient
        if self._patient[:2] != head.patient[:2]:
            raise IdentityDiffers("the series holds images of more than one patient")

    # -- to the PACS --------------------------------------------------------------------------

    async def _store(self) -> None:
        """Stores in batches, what is left at the end."""
        batch: list[Made] = []
        size, makers = 0, self._bounds.width
        while makers:
            made = await self._outbox.get()
            if made is None:
                makers -= 1
                continue
            more = made.path.stat().st_size
            if batch and size + more > self._peer.stow_bytes:
                await self._send(batch)
                batch, size = [], 0
            batch, size = [*batch, made], size + more
            if len(batch) == self._peer.stow_items:
                await self._send(batch)
                batch, size = [], 0
        if batch:
            await self._send(batch)

    async def _send(self, batch: list[Made]) -> None:
        """Stores one batch and notes what the PACS says of each."""
        job = self._run.id
        await asyncio.to_thread(self._instances.announce, job, [made.note for made in batch])
        told = await self._web.store(self._order.study, [made.path for made in batch])
        done = [Instance(m.source, m.derived, Outcome.STORED) for m in batch if m.derived in told.stored]
        await asyncio.to_thread(self._instances.settle, job, done)
        self._stored += len(done)
        for _ in done:
            self._observe(Outcome.STORED)
        for made in batch:
            made.path.unlink()
            if made.derived not in told.stored:
                await self._not_stored(made, told.failed.get(made.derived), alone=len(batch) == 1, none=not done)
        await self._tell()

    async def _not_stored(self, made: Made, failure: Failure | None, alone: bool, none: bool) -> None:
        """Notes an instance that the PACS did not take. Raises PacsRefused where it takes none at all, and
        PacsUnavailable where it has no room."""
        instance = Instance(made.source, made.derived)
        if failure is not None and failure.temporary:
            raise PacsUnavailable("busy")
        if failure is None:
            await self._defer(instance, PacsUnavailable("error"), "not_stored")
        elif none and (not self._stored or (failure.code == PROCESSING_FAILURE and not alone)):
            raise PacsRefused("conflict")
        else:
            code = "unknown" if failure.code is None else f"{failure.code:04x}"
            await self._settle(instance, Outcome.FAILED, f"refused_{code}")

    # -- notes --------------------------------------------------------------------------------

    async def _settle(self, instance: Instance, state: Outcome, reason: str | None = None) -> None:
        settled = replace(instance, state=state, reason=reason)
        await asyncio.to_thread(self._instances.settle, self._run.id, [settled])
        self._observe(state)
        await self._tell()

    async def _defer(self, instance: Instance, error: MedRestoreError, reason: str) -> None:
        """Keeps an instance for the next run, or gives it up."""
        if await asyncio.to_thread(self._instances.failed_once, self._run.id, instance.source, ATTEMPTS, reason):
            self._observe(Outcome.FAILED)
        else:
            self._deferred = error

    async def _tell(self) -> None:
        counts = await asyncio.to_thread(self._instances.counts, self._run.id)
        total = sum(counts.values())
        await self._run.progress(total - counts[Outcome.PENDING], total)


def _folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
