"""What is sent here by STOW or C-STORE: judged instance by instance, kept, and made a job for each series.

A transfer (one STOW request, one association) has a folder in the spool. What a sender was told is
accepted lies there on the disk; when the transfer ends, its files are linked into the folders of
jobs, and only then leave the spool. A transfer that a death of the service cut off is taken up at the
next start; the jobs have keys, so that none is made twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from app.catalogue import Catalogue
from app.errors import JobNotFound, JobsUnavailable
from app.jobs.engine import JobEngine
from app.jobs.folder import PRIVATE_FOLDER, JobFolder
from app.jobs.store import Job
from app.log import event, places
from app.offload import whole
from app.pacs.candidate import Candidate
from app.pacs.desk import order_of
from app.pacs.forward import KIND, Delivery
from app.pacs.header import read_head
from app.pacs.request import request_of
from app.pacs.rule import Door as DoorRules
from app.pacs.rule import Work
from app.pacs.rulebook import Rulebook
from app.settings import Settings
from models.errors import CorruptImage, ImageError, ImageTooLarge, MedRestoreError, OptionError, UnsupportedImage
from models.imaging.frames import open_frames

if TYPE_CHECKING:
    from models.imaging.dicom import Head

SPOOL, INCOMING = "spool", "incoming"
RETRY_S = 30.0
ANY_NUMBER = 2**31  # of instances, where a transfer has not ended yet

# Failure Reason (0008,1197), and the status of C-STORE (PS3.18 I.2.2, PS3.4 B.2.3, PS3.7 annex C)
OUT_OF_RESOURCES = 0xA700
OTHER_STUDY = 0xA900  # data set does not match
CANNOT_UNDERSTAND = 0xC000
SYNTAX_NOT_SUPPORTED = 0xC122
CLASS_NOT_SUPPORTED = 0x0122
DUPLICATE = 0x0111
NOT_TAKEN = 0x0124  # refused: not authorized; by its kind, or because no rule takes it
NOT_RESTORABLE = 0x0110  # processing failure
_BY_REASON = {
    "no_pixel_data": CLASS_NOT_SUPPORTED,
    "unsupported_pixels": CLASS_NOT_SUPPORTED,
    "unsupported_transfer_syntax": SYNTAX_NOT_SUPPORTED,
    "invalid_dicom": CANNOT_UNDERSTAND,
}


class Judgement(NamedTuple):
    """What is said to one instance; `failure` and `reason` are None where it is accepted."""

    head: Head | None  # None where the file cannot be read
    failure: int | None
    reason: str | None  # a slug


@dataclass(frozen=True)
class Series:
    """The accepted files of one series of a transfer."""

    candidate: Candidate
    files: list[Path]


class Transfer:
    """One STOW request or one association. All but `path` belongs to the event loop."""

    def __init__(self, door: Door, folder: Path, jobs: JobFolder) -> None:
        self.folder = folder
        self.count = 0  # instances so far
        self.bytes = 0  # of them, where its owner counts
        self._door = door
        self._jobs = jobs
        self._room = AsyncExitStack()

    async def reserve(self) -> None:
        """Begins to hold room on the disk. Raises DiskFull."""
        await self._room.enter_async_context(self._jobs.promise(self.folder.name, 0))

    async def cover(self, bytes: int) -> None:
        """Holds room for so many bytes in all. Raises DiskFull, ImageTooLarge."""
        await self._jobs.cover(self.folder.name, bytes)

    async def release(self) -> None:
        """Gives back the room that was held."""
        await self._room.aclose()

    def path(self) -> Path:
        """Where the next instance goes."""
        self.count += 1
        return self.folder / f"{self.count:06}.dcm"

    async def end(self) -> None:
        """Leaves the transfer to `Door.sweep`."""
        await self.release()
        self._door.ended(self.folder)


class Door:
    """Takes transfers. Needs the folder of jobs; belongs to one event loop, but for `judge`."""

    def __init__(self, jobs: JobEngine, rulebook: Rulebook, catalogue: Catalogue, settings: Settings) -> None:
        self._jobs = jobs
        self._catalogue = catalogue
        self._rulebook = rulebook
        self._settings = settings
        self._spool = jobs.folder.root / SPOOL
        self._open: dict[str, Transfer] = {}  # by the name of its folder
        self._ended = asyncio.Event()  # there may be something for `sweep`

    def rules(self) -> DoorRules:
        """What is done with what comes. Raises JobsUnavailable where the door is shut."""
        door = self._rulebook.rules().door
        if door is None:
            raise JobsUnavailable("nothing is taken here: the rules file has no [door]")
        return door

    async def begin(self, kind: str) -> Transfer:
        """A new transfer; what is left of one of kind `dimse` after a crash becomes jobs at the next start.

        Raises JobsUnavailable, DiskFull, OSError.
        """
        self.rules()
        transfer = Transfer(self, self._spool / f"{kind}-{self._jobs.new_id()}", self._jobs.folder)
        self._open[transfer.folder.name] = transfer  # first, lest `sweep` take it for one that was left behind
        try:
            await asyncio.to_thread(self._make, transfer.folder)
            await transfer.reserve()
        except BaseException:
            await self.discard(transfer.folder)
            raise
        return transfer

    def incoming(self) -> Path:
        """A folder for files that are still being received; empties it."""
        shutil.rmtree(self._spool / INCOMING, ignore_errors=True)
        return self._make(self._spool / INCOMING)

    def _make(self, folder: Path) -> Path:
        self._spool.mkdir(PRIVATE_FOLDER, exist_ok=True)
        folder.mkdir(PRIVATE_FOLDER)
        return folder

    # -- jobs ---------------------------------------------------------------------------------

    async def deliveries(self, count: int) -> list[Job]:
        """The newest jobs of what came in."""
        return await self._jobs.page(KIND, count)

    async def retry(self, id: str) -> Job:
        """Has a job run again, with what the PACS refused. Raises JobNotFound."""
        if (await self._jobs.get(id)).kind != KIND:
            raise JobNotFound("no such job of this kind")
        return await self._jobs.retry(id)

    # -- one instance -------------------------------------------------------------------------

    def judge(self, path: Path, study: str | None = None) -> Judgement:
        """Whether one file is accepted: it can be read, belongs to `study` where that is given, and something is to be
        done with it. To be called off the event loop. Raises JobsUnavailable."""
        door = self.rules()
        try:
            head = read_head(path, self._settings.limit_bytes)
            kind = head.kind
        except ImageTooLarge:
            return Judgement(None, OUT_OF_RESOURCES, "too_large")
        except ImageError:
            return Judgement(None, CANNOT_UNDERSTAND, "damaged")
        if study is not None and head.study != study:
            return Judgement(head, OTHER_STUDY, "other_study")
        if door.originals:
            return Judgement(head, None, None)
        if kind.name != "image":
            unfit = kind.name in ("report", "unsupported")
            return Judgement(head, CLASS_NOT_SUPPORTED if unfit else NOT_TAKEN, kind.name)
        if door.work(_candidate(head, ANY_NUMBER)) is None:
            return Judgement(head, NOT_TAKEN, "unmatched")
        return self._restorable(path, head)

    def _restorable(self, path: Path, head: Head) -> Judgement:
        try:
            with open_frames(path, self._settings.job_limits, self._settings.limits) as frames:
                frames.check()
        except ImageTooLarge:
            return Judgement(head, OUT_OF_RESOURCES, "too_large")
        except CorruptImage:
            return Judgement(head, CANNOT_UNDERSTAND, "damaged")
        except UnsupportedImage as error:
            return Judgement(head, _BY_REASON.get(error.reason, NOT_RESTORABLE), error.reason)
        except ImageError:
            return Judgement(head, NOT_RESTORABLE, "unsupported")
        return Judgement(head, None, None)

    def told_of_series(self, told: Sequence[Judgement]) -> list[Judgement]:
        """The same judgements, where a series is whole: rules may ask for more instances than came. Raises
        JobsUnavailable."""
        door = self.rules()
        found: dict[tuple[str, str], list[Head]] = {}
        for one in told:
            if one.head and one.failure is None:
                found.setdefault((one.head.study, one.head.series), []).append(one.head)
        taken = {place for place, heads in found.items() if door.originals or door.work(_candidate_of(heads))}
        return [
            one._replace(failure=NOT_TAKEN, reason="unmatched")
            if one.head and one.failure is None and (one.head.study, one.head.series) not in taken
            else one
            for one in told
        ]

    # -- one transfer -------------------------------------------------------------------------

    async def close(self, folder: Path) -> list[str]:
        """Makes jobs of a transfer that has ended, and empties its folder; the jobs' ids.

        Raises QueueFull, DiskFull, JobsUnavailable, OSError: what is not in a job by then stays, to be closed another
        time.
        """
        door = self.rules()
        ids, left = [], 0
        for series in await asyncio.to_thread(_series_of, folder, self._settings.limit_bytes):
            work = door.work(series.candidate)
            if work is None and not door.originals:  # accepted by rules that are others by now
                left += len(series.files)
                continue
            key = f"door\n{folder.name} {series.candidate.study} {series.candidate.series}"
            if not await self._submitted(key):
                ids.append(await self._submit(key, series, door, work))
            await whole(asyncio.to_thread(_unlink, series.files))
        if left:
            raise JobsUnavailable(
                f"no rule takes {left} instances any more that were accepted; give the door a default"
            )
        await self.discard(folder)
        return ids

    async def discard(self, folder: Path) -> None:
        """Deletes a transfer."""
        if transfer := self._open.pop(folder.name, None):
            await transfer.release()
        await whole(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    def ended(self, folder: Path) -> None:
        """Leaves a transfer to `sweep`."""
        self._open.pop(folder.name, None)
        self._ended.set()

    async def sweep(self) -> None:
        """Makes jobs of transfers that have ended, for ever; those of a full queue or disk another time."""
        while True:
            self._ended.clear()
            try:
                done = [await self._take_up(folder) for folder in await asyncio.to_thread(self._left)]
            except OSError as error:
                event("the spool cannot be read", logging.ERROR, **places(error))
                done = [False]
            with suppress(TimeoutError):
                async with asyncio.timeout(None if all(done) else RETRY_S):
                    await self._ended.wait()

    async def _take_up(self, folder: Path) -> bool:
        """Deals with what is in the spool, unless it is still being received; False: another time."""
        if folder.name in self._open:
            return True
        try:
            await (self.close(folder) if folder.name.startswith("dimse-") else self.discard(folder))
        except Exception as error:  # noqa: BLE001  (one transfer must not keep the others out)
            reason = str(error) if isinstance(error, MedRestoreError) else type(error).__name__
            event("a transfer waits at the door", logging.WARNING, reason=reason, **places(error))
            return False
        return True

    def _left(self) -> list[Path]:
        return sorted(folder for folder in self._spool.glob("*") if folder.name != INCOMING)

    async def _submitted(self, key: str) -> bool:
        """Whether the job of a series was made before a death of the service, by whatever rules."""
        try:
            return await self._jobs.known(key, KIND, {}) is not None
        except OptionError:  # its parameters are others, of course
            return True

    async def _submit(self, key: str, series: Series, door: DoorRules, work: Work | None) -> str:
        """Queues the job of one series, whose files stay in the spool too."""
        self._jobs.check()
        id = self._jobs.new_id()
        target = await asyncio.to_thread(self._jobs.folder.make, id)
        try:
            await whole(asyncio.to_thread(_link, series.files, target))
            delivery = self._delivery(series.candidate, door, work)
            job = await self._jobs.submit(id, KIND, asdict(delivery), len(series.files), key)
        except BaseException:
            await whole(asyncio.to_thread(self._jobs.folder.delete, id))
            raise
        event("series taken at the door", job=job.id, instances=len(series.files), restored=work is not None)
        return job.id

    def _delivery(self, candidate: Candidate, door: DoorRules, work: Work | None) -> Delivery:
        """Raises OptionError, BundleError."""
        order = None
        if work is not None:
            request, otherwise = request_of(door.pacs, candidate, work), self._settings.consistency_db
            order = order_of(request, door.pacs, self._catalogue, otherwise).parameters
        return Delivery(door.pacs, candidate.study, candidate.series, candidate.instances, door.originals, order)


def _series_of(folder: Path, most_bytes: int) -> list[Series]:
    """The files of a transfer by series; one that a crash cut short is left out: nobody was told that it is here."""
    found: dict[tuple[str, str], list[tuple[Path, Head]]] = {}
    for path in sorted(folder.glob("*.dcm")):
        try:
            head = read_head(path, most_bytes)
        except ImageError:
            continue
        found.setdefault((head.study, head.series), []).append((path, head))
    return [_one_series(members) for members in found.values()]


def _one_series(members: Sequence[tuple[Path, Head]]) -> Series:
    return Series(_candidate_of([head for _, head in members]), [path for path, _ in members])


def _candidate_of(heads: Sequence[Head]) -> Candidate:
    """A series by its first plain image, where it has one."""
    image = next((head for head in heads if head.kind.name == "image"), heads[0])
    return _candidate(image, len(heads))


def _candidate(head: Head, instances: int) -> Candidate:
    return Candidate(head.study, head.series, instances, head.attributes)


def keep(path: Path) -> None:
    """Brings a file and its name to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _link(files: Sequence[Path], target: Path) -> None:
    """Gives files a second name, on the disk when this returns."""
    for path in files:
        os.link(path, target / path.name)
    sync_folder(target)
    sync_folder(target.parent)


def _unlink(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
