"""Jobs of kind `door`: a series that was sent here, restored, and stored in a PACS.

The job's folder holds the files that are still to be done: one leaves it when the PACS has confirmed all
that was to be stored for it. Whatever cuts a run off, the next one does what is there; the derived UIDs
follow from the content, so that storing again is harmless. What the PACS refused, or no model can restore,
is kept with the job, for `retry`. A job waits for its PACS as long as it takes, and rests without its model:
the files may be nowhere else.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import Inconsistent, Quarantined, RunFailed
from app.jobs.folder import PRIVATE_FOLDER, JobFolder
from app.jobs.run import Blocked, Run
from app.noise import together
from app.offload import whole
from app.pacs.dicomweb import Stored, batches
from app.pacs.errors import PacsRefused, PacsUnavailable
from app.pacs.header import read_head
from app.pacs.job import Connection, bundle_of, translated
from app.pacs.key import Order
from app.pacs.maker import Maker, precision_of
from app.service import Service
from models.errors import BundleError, ImageError, OptionError

if TYPE_CHECKING:
    from models.imaging.dicom import Head

KIND = "door"
COMPRESSED = 4  # times that an instance grows when it is decompressed, about
WIDTH = 4  # instances being restored at one time
OUT, REFUSED = "derived", "refused"  # folders in the job's


class Verdict(IntEnum):
    """How far an instance is; of several, the highest counts."""

    DONE = 0
    REFUSED = 1  # for good
    LATER = 2


@dataclass(frozen=True)
class Delivery:
    """The parameters of a job."""

    pacs: str
    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID of the source
    instances: int
    originals: bool  # the PACS gets them too
    order: dict[str, Any] | None  # of an `Order`, None where nothing is restored


class DoorHandler:
    """Runs jobs of what came through the door."""

    def __init__(self, service: Service, folder: JobFolder, connections: Mapping[str, Connection]) -> None:
        self._service = service
        self._folder = folder
        self._connections = connections

    async def __call__(self, run: Run) -> dict[str, Any]:
        """The outcome: `phase` (how it ended), `series` (the derived one) and the numbers `stored` and `failed`."""
        delivery = Delivery(**run.parameters)
        connection = self._connections.get(delivery.pacs)
        if connection is None:
            raise Blocked(OptionError("the job's PACS is not in the settings any more"))
        with translated(run, math.inf):  # what is here may be nowhere else
            maker = self._maker(run, delivery)
            forwarding = _Forwarding(run, delivery, connection, maker, self._service.settings.limit_bytes)
            async with self._folder.promise(run.id, await asyncio.to_thread(forwarding.bytes_needed)):
                return await forwarding.work()

    def _maker(self, run: Run, delivery: Delivery) -> Maker | None:
        if delivery.order is None:
            return None
        order = Order(**delivery.order)
        try:
            bundle = bundle_of(order, self._service.catalogue)
        except (BundleError, OptionError) as error:
            raise Blocked(error) from error
        precision = precision_of(order, bundle, self._service)
        return Maker(self._service, bundle, order, precision, datetime.fromtimestamp(run.created))


class _Forwarding:
    """One run of one job."""

    def __init__(
        self, run: Run, delivery: Delivery, connection: Connection, maker: Maker | None, most_bytes: int
    ) -> None:
        self._most_bytes = most_bytes
        self._run = run
        self._delivery = delivery
        self._peer, self._web = connection.peer, connection.web
        self._maker = maker
        self._out, self._refused = run.folder / OUT, run.folder / REFUSED
        self._busy = False  # the PACS could not take something now
        self._room = asyncio.Semaphore(WIDTH)

    def bytes_needed(self) -> int:
        """Of the job's folder at most: what is there, and one batch of what is made of it."""
        held = sum(path.stat().st_size for path in self._run.folder.rglob("*.dcm"))
        scale = self._delivery.order["scale"] if self._delivery.order else 1
        return held + int(COMPRESSED * self._peer.stow_bytes * scale**2)

    async def work(self) -> dict[str, Any]:
        """Raises PacsError, and what ends the job."""
        for folder in (self._out, self._refused):
            await asyncio.to_thread(folder.mkdir, PRIVATE_FOLDER, parents=True, exist_ok=True)
        files = await asyncio.to_thread(self._files)
        total = self._delivery.instances
        await self._run.phase("running")
        for batch in batches(files, self._peer.stow_items, self._peer.stow_bytes):
            await self._forward(batch)
            await self._run.progress(total - len(list(self._run.folder.glob("*.dcm"))), total)
        if self._busy:
            raise PacsUnavailable("busy")
        failed = len(list(self._refused.iterdir()))
        if failed == total:
            raise PacsRefused("refused")
        if not failed:
            await whole(asyncio.to_thread(shutil.rmtree, self._run.folder, ignore_errors=True))
        phase = "completed_with_gaps" if failed else "completed"
        series = None if self._maker is None else self._maker.series
        return {"phase": phase, "series": series, "stored": total - failed, "failed": failed}

    def _files(self) -> list[Path]:
        """What is to be done; where nothing is, this is another try at what was refused."""
        if not any(self._run.folder.glob("*.dcm")):
            for path in self._refused.iterdir():
                path.replace(self._run.folder / path.name)
        return sorted(self._run.folder.glob("*.dcm"))

    async def _forward(self, batch: Sequence[Path]) -> None:
        """Stores the originals where they are wanted, then what is made of them; what is settled leaves the folder."""
        heads = [await asyncio.to_thread(read_head, path, self._most_bytes) for path in batch]
        verdicts = [Verdict.DONE] * len(batch)
        if self._delivery.originals:
            told = await self._web.store(self._delivery.study, batch)
            verdicts = [verdict(told, head.sop_instance) for head in heads]
        made = await together([self._make(path, head) for path, head in zip(batch, heads, strict=True)])
        files = [self._out / path.name for path, uid in zip(batch, made, strict=True) if isinstance(uid, str)]
        told = await self._web.store(self._delivery.study, files) if files else Stored()
        for path, before, found in zip(batch, verdicts, made, strict=True):
            after = found if isinstance(found, Verdict) else verdict(told, found)
            await asyncio.to_thread(self._settle, path, max(before, after))

    async def _make(self, path: Path, head: Head) -> str | Verdict:
        """The UID of what was made of one instance; DONE where nothing is to be made, REFUSED where nothing can be."""
        if self._maker is None or head.kind.name != "image":
            return Verdict.DONE
        async with self._room:
            try:
                made = await self._maker.make(head.sop_instance, path, self._out / path.name)
            except (ImageError, RunFailed, Quarantined, Inconsistent):
                return Verdict.REFUSED
        return made.derived

    def _settle(self, path: Path, found: Verdict) -> None:
        (self._out / path.name).unlink(missing_ok=True)
        if found is Verdict.LATER:
            self._busy = True
        elif found is Verdict.REFUSED:
            path.replace(self._refused / path.name)
        else:
            path.unlink()


def verdict(told: Stored, uid: str) -> Verdict:
    """What the answer to storing says to one instance."""
    if uid in told.stored:
        return Verdict.DONE
    failure = told.failed.get(uid)
    return Verdict.LATER if failure is None or failure.temporary else Verdict.REFUSED
