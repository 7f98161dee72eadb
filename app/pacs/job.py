"""Jobs of kind `pacs`: one series out of a PACS, restored, and stored back as a derived series.

    listing ──> running ──> verifying ──> completed, or completed_with_gaps
                   ^            │
                   └────────────┘ slices came late, or the PACS does not list what it took

Whatever cuts a run off, the next one lists again, asks what the PACS holds already, and does the rest. The
derived UIDs follow from the content alone, so that all runs and all jobs converge on the same objects.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.catalogue import Catalogue
from app.errors import BackendUnavailable, DiskFull, PixelsDiffer
from app.jobs.crew import NO_SPACE
from app.jobs.folder import JobFolder
from app.jobs.run import Blocked, Later, Run
from app.log import event
from app.offload import whole
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsDenied, PacsGone, PacsUnavailable
from app.pacs.flow import NOT_RESTORED, Bounds, Flow
from app.pacs.instance import Instance, Instances, Outcome
from app.pacs.key import Order
from app.pacs.maker import Maker, bytes_at_most, bytes_of, pixel_digest, precision_of
from app.pacs.peer import Peer
from app.pacs.row import InstanceRow
from app.pipeline import EXACT
from app.service import Service
from app.settings import Settings
from models.bundle import Bundle
from models.errors import BundleInvalid, BundleNotFound, MedRestoreError, OptionError

KIND = "pacs"
WAIT_LEAST_S, WAIT_MOST_S = 1.0, 300.0
KEPT = 8  # times that a PACS may not list what it has confirmed, until it counts as failed: minutes
ROWS = 500  # instances noted at one time
UNKNOWN_BYTES = 32 * 1024**2  # an instance of which the PACS does not tell the size
ON_THE_WAY_BYTES = 256 * 1024**2  # fetched ahead, and again restored


@dataclass(frozen=True)
class Connection:
    """One PACS that jobs work with."""

    peer: Peer
    web: DicomWeb


class PacsHandler:
    """Runs PACS jobs. One may run several times; each time it begins with what the PACS says."""

    def __init__(
        self,
        service: Service,
        folder: JobFolder,
        connections: Mapping[str, Connection],
        instances: Instances,
        observe: Callable[[str], None],
    ) -> None:
        """`observe` is told the outcome of each instance."""
        self._service = service
        self._folder = folder
        self._connections = connections
        self._instances = instances
        self._observe = observe

    async def __call__(self, run: Run) -> dict[str, Any]:
        """The outcome: `phase` (how it ended), `series` (the derived one) and `precision`."""
        order = Order(**run.parameters)
        if order.pacs not in self._connections:
            raise Blocked(OptionError("the job's PACS is not in the settings any more"))
        try:
            with translated(run, self._service.settings.pacs_give_up_s):
                return await self._serve(run, order)
        finally:
            await whole(asyncio.to_thread(shutil.rmtree, run.folder, ignore_errors=True))

    async def _serve(self, run: Run, order: Order) -> dict[str, Any]:
        bundle = bundle_of(order, self._service.catalogue)
        precision = precision_of(order, bundle, self._service)
        try:
            return await self._work(run, order, bundle, precision)
        except (BackendUnavailable, BundleInvalid) as exc:
            if precision == EXACT:
                raise
            event("no fast mode, exact mode serves", logging.WARNING, model=bundle.reference, reason=str(exc))
        return await self._work(run, order, bundle, EXACT)

    async def _work(self, run: Run, order: Order, bundle: Bundle, precision: str) -> dict[str, Any]:
        connection, settings = self._connections[order.pacs], self._service.settings
        maker = Maker(self._service, bundle, order, precision, datetime.fromtimestamp(run.created))
        most = bytes_at_most(settings.job_pixels) // order.scale**2
        series = _Series(run, order, connection.web, self._instances, maker, most)
        await run.phase("listing")
        if not await series.list() and not series.listed:
            raise PacsGone()
        await series.find()
        derived = series.largest * order.scale**2
        bounds = bounds_for(series.largest, derived, connection.peer)
        async with self._folder.promise(run.id, _bytes_needed(bounds, series.largest, derived)):
            more = True
            while more:
                await run.phase("running")
                await whole(asyncio.to_thread(_empty, run))
                parts = (connection.web, connection.peer, self._instances, maker, bounds, self._observe)
                await Flow(run, order, *parts).work()
                await run.phase("verifying")
                await series.confirm()
                more = await series.list() > 0
            await series.compare(settings)
        counts = await asyncio.to_thread(self._instances.counts, run.id)
        gaps = counts[Outcome.FAILED] + counts[Outcome.GONE]
        phase = "completed_with_gaps" if gaps else "completed"
        return {"phase": phase, "series": maker.series, "precision": precision}


class _Series:
    """The source series and the derived one, as the PACS has them."""

    def __init__(self, run: Run, order: Order, web: DicomWeb, instances: Instances, maker: Maker, most: int) -> None:
        """`most` bytes of an instance are within the limits."""
        self._run = run
        self._order = order
        self._web = web
        self._instances = instances
        self._maker = maker
        self._most = most
        self.listed = 0
        self.largest = 0  # bytes of an instance without compression

    async def list(self) -> int:
        """Lists the source; gives how many instances are new."""
        fresh, rows, self.listed = 0, [], 0
        async for row in self._web.instances(self._order.study, self._order.series):
            self.listed += 1
            rows.append(self._judge(row))
            if len(rows) == ROWS:
                fresh += await asyncio.to_thread(self._instances.add, self._run.id, rows)
                rows = []
        return fresh + await asyncio.to_thread(self._instances.add, self._run.id, rows)

    def _judge(self, row: InstanceRow) -> Instance:
        """A row of the list, skipped where its class or image type says that it is no image of the series, failed where
        it is over the limits."""
        from models.imaging.dicom.kind import kind_of

        kind = kind_of({"SOPClassUID": row.sop_class, "ImageType": list(row.image_type)}).name
        derived = self._maker.uid(row.sop_instance, row.rows, row.columns)
        if kind in NOT_RESTORED:
            return Instance(row.sop_instance, derived, Outcome.SKIPPED, kind)
        size = bytes_of(row, UNKNOWN_BYTES)
        if size > self._most:  # else all the others would have to wait for its room on the disk
            return Instance(row.sop_instance, derived, Outcome.FAILED, "too_large")
        self.largest = max(self.largest, size)
        return Instance(row.sop_instance, derived)

    async def find(self) -> int:
        """Notes what the PACS holds already, and what of the stored it holds no more; gives how much is pending."""
        held = await self._held()
        await asyncio.to_thread(self._instances.missed, self._run.id, held, KEPT)
        return await asyncio.to_thread(self._instances.found, self._run.id, held)

    async def confirm(self) -> None:
        """Whether the PACS lists all that it has confirmed. Raises PacsUnavailable: some list late."""
        if await self.find():
            raise PacsUnavailable("unlisted")

    async def _held(self) -> set[str]:
        rows = self._web.instances(self._order.study, self._maker.series)
        return {row.sop_instance async for row in rows}

    async def compare(self, settings: Settings) -> None:
        """Reads a sample back; all is verified where its pixels are right. Raises PixelsDiffer."""
        path = self._run.folder / "sample.dcm"
        for instance in await asyncio.to_thread(self._instances.sample, self._run.id, settings.pacs_sample):
            expected = instance.digest or await self._made_again(instance)
            if expected is None:
                continue
            try:
                await self._web.retrieve(self._order.study, self._maker.series, instance.derived, path)
            except PacsGone as error:  # a moment after it was listed
                raise PacsUnavailable("error") from error
            found = await asyncio.to_thread(pixel_digest, path, settings.job_limits, settings.limits)
            if found != expected:
                raise PixelsDiffer(
                    "the PACS holds other pixels under the UID of a derived object: it keeps the first of two objects "
                    "with one UID; delete the derived series there, and retry"
                )
            path.unlink()
        await asyncio.to_thread(self._instances.verify, self._run.id)

    async def _made_again(self, instance: Instance) -> str | None:
        """The digest of what the PACS held before this job; None where its source is gone."""
        source, target = self._run.folder / "source.dcm", self._run.folder / "again.dcm"
        try:
            await self._web.retrieve(self._order.study, self._order.series, instance.source, source)
        except PacsGone:
            return None
        made = await self._maker.make(instance.source, source, target)
        await asyncio.to_thread(self._instances.announce, self._run.id, [made.note])
        return made.digest


def bundle_of(order: Order, catalogue: Catalogue) -> Bundle:
    """The very model that was ordered. Raises BundleError, OptionError."""
    bundle = catalogue.lookup(order.model, order.operation, order.scale)
    if bundle.digest != order.digest:
        raise BundleNotFound(
            f"model {order.model} is another one than when the job was accepted: put that one back, and retry"
        )
    return bundle


def bounds_for(source: int, derived: int, peer: Peer) -> Bounds:
    """How much may be on its way, by the bytes of the largest instances."""
    ahead = max(1, min(8, ON_THE_WAY_BYTES // max(source, 1)))
    width = max(1, min(4, ON_THE_WAY_BYTES // max(derived, 1)))
    return Bounds(ahead, width, max(1, min(peer.stow_items, peer.stow_bytes // max(derived, 1))))


def _bytes_needed(bounds: Bounds, source: int, derived: int) -> int:
    """Of the spool at most: two copies of what is being restored, the outbox, and a batch as large."""
    return source * (bounds.ahead + bounds.width) + derived * 2 * (bounds.width + bounds.outbox)


def _empty(run: Run) -> None:
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(mode=0o700, parents=True)


@contextmanager
def translated(run: Run, give_up_s: float) -> Iterator[None]:
    """Has a job wait or rest for what is the fault of the PACS or of the disk. Raises Later or Blocked, or what it was
    once the job has waited for `give_up_s`."""
    try:
        yield
    except PacsDenied as error:
        raise Blocked(error) from error
    except (PacsUnavailable, DiskFull) as error:
        raise _later(run, error, give_up_s) from error
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise _later(run, DiskFull("the jobs' disk is full"), give_up_s) from error


def _later(run: Run, error: MedRestoreError, give_up_s: float) -> Exception:
    """What has the job wait, longer each time it gets nowhere; the error itself once that has been too long."""
    if run.waiting_since is not None and time.time() - run.waiting_since > give_up_s:
        return error
    wait_s = min(WAIT_LEAST_S * 2 ** min(run.waits, 30), WAIT_MOST_S) * random.uniform(0.8, 1.2)
    asked_s = error.retry_after_s if isinstance(error, PacsUnavailable) else None
    return Later(error, max(wait_s, asked_s or 0.0))
