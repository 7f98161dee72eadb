"""One source instance in, one derived instance out, both files: the pipeline of `app.pipeline`, as bulk work."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from app.errors import IdentityDiffers
from app.jobs.restoration import image_after
from app.offload import whole
from app.pacs.header import read_head
from app.pacs.instance import Instance
from app.pacs.key import Order
from app.pacs.row import InstanceRow
from app.pipeline import EXACT, FAST, Evidence, Record, Stopwatch, check, derive, restore_frames, summarise
from app.runner import BulkRunner
from app.service import Service
from models.bundle import Bundle
from models.errors import UnsupportedImage
from models.imaging.frames import Frames, open_frames
from models.imaging.image import Derivation, Image, Limits, ValueMap
from models.imaging.policy import Policy

if TYPE_CHECKING:
    from models.imaging.dicom import Head

NOTHING = Evidence("")  # UIDs do not depend on what was measured
LARGE_PIXELS = 4 * 1024**2  # of a frame, restored: such are worked one at a time


@dataclass(frozen=True)
class Made:
    """A derived instance in the spool."""

    source: str  # SOPInstanceUID
    derived: str
    digest: str  # SHA-256 of the derived pixels
    path: Path
    consistency: float | None  # dB, of what was super-resolved

    @property
    def note(self) -> Instance:
        """As a job's rows know it."""
        return Instance(self.source, self.derived, digest=self.digest, consistency=self.consistency)


class Maker:
    """Makes the derived instances of one job, several at a time; equal files give equal files."""

    def __init__(self, service: Service, bundle: Bundle, order: Order, precision: str, now: datetime) -> None:
        """`now` is the job's time, which all its objects bear."""
        self.precision = precision
        self._service = service
        self._bundle = bundle
        self._order = order
        self._now = now
        self._backend = service.engine.config.backends[precision]
        self._runner: BulkRunner | None = None
        self._large = asyncio.Lock()

    @property
    def series(self) -> str:
        """SeriesInstanceUID of what is made."""
        return derived_series(self._service, self._bundle, self._order, self.precision)

    def uid(self, source: str, rows: int | None, columns: int | None) -> str:
        """SOPInstanceUID of what is made of an instance; empty where that depends on a size that is not known."""
        from models.imaging.dicom.identity import derived_uid

        tiles = self._tiles(rows or 1, columns or 1)
        if tiles and not (rows and columns):
            return ""
        return str(derived_uid(source, self._derivation(tiles), self._service.settings.policy))

    async def head(self, path: Path) -> Head:
        """What a file is. Raises ImageError."""
        return await asyncio.to_thread(read_head, path, self._service.settings.limit_bytes)

    async def make(self, uid: str, source: Path, target: Path) -> Made:
        """Writes the derived file. Raises ImageError, and what running the model raises."""
        settings = self._service.settings
        with ExitStack() as stack:
            opening = open_frames(source, settings.job_limits, settings.limits)
            frames = await asyncio.to_thread(stack.enter_context, opening)
            if frames.image.format != "dicom":
                raise UnsupportedImage("invalid_dicom", "the archive sent a file that is no DICOM object")
            await asyncio.to_thread(frames.check)
            check(frames.image, self._bundle, self._order.options, settings.job_limits)
            rows, columns = frames.image.pixels.shape[1:3]
            if rows * columns * self._order.scale**2 <= LARGE_PIXELS:
                return await self._restore(uid, frames, source, target)
            async with self._large:
                return await self._restore(uid, frames, source, target)

    async def _restore(self, uid: str, frames: Frames, source: Path, target: Path) -> Made:
        image, bundle, order = frames.image, self._bundle, self._order
        spool = _Spool(frames, target)
        runner = self._runner = self._runner or self._new_runner(image)
        try:
            with self._service.booking_refusal(bundle):
                records = await restore_frames(spool, range(image.frames), bundle, order.options, runner, Stopwatch())
        except BaseException:
            spool.discard()
            raise
        evidence = summarise(records, image, bundle)
        derivation = self._derivation(self._tiles(*image.pixels.shape[1:3]), evidence)
        after = image_after(image, order.scale)
        await whole(asyncio.to_thread(spool.write, after, derivation, self._now, self._service.settings.policy))
        derived = assert_same_patient(await self.head(source), await self.head(target), self.series)
        self._service.book(bundle, image, evidence)
        found = evidence.consistency
        return Made(uid, derived, spool.digest, target, found.psnr if found else None)

    def _new_runner(self, image: Image) -> BulkRunner:
        """One for all instances, so that together they have no more tiles in the queue than one image may."""
        window = self._service.window(image, self._bundle, self.precision)
        return BulkRunner(self._service.engine, self._bundle.digest, self.precision, window, self._service.tiling)

    def _derivation(self, tiles: str, evidence: Evidence = NOTHING) -> Derivation:
        return derive(self._bundle, self._order.options, self._backend, self.precision, evidence, tiles)

    def _tiles(self, rows: int, columns: int) -> str:
        pixels = np.broadcast_to(np.zeros((), np.uint8), (1, rows, columns, 1))
        shape = Image(pixels, ValueMap(1, 0), "dicom", 0, 255)
        return self._service.tiling.mark(self._bundle, shape, self.precision)


class _Spool:
    """Frames on their way into the derived file: one in memory, several on the disk. See `app.pipeline.Frames`."""

    def __init__(self, source: Frames, target: Path) -> None:
        self._source = source
        self._target = target
        self._hash = hashlib.sha256()
        self._frame = b""
        self._many = source.image.frames > 1
        self._pixels = target.with_suffix(".pixels")
        self.discard()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    async def take(self, index: int) -> Image:
        return await asyncio.to_thread(self._source.read, index)

    async def put(self, index: int, frame: Image, record: Record) -> None:
        await whole(asyncio.to_thread(self._keep, frame))

    def _keep(self, frame: Image) -> None:
        from models.imaging.dicom import native_pixels

        data = native_pixels(frame)
        self._hash.update(data)
        if self._many:
            with self._pixels.open("ab") as file:
                file.write(data)
        else:
            self._frame = data

    def discard(self) -> None:
        """Deletes the frames of what comes to nothing."""
        self._pixels.unlink(missing_ok=True)

    def write(self, image: Image, derivation: Derivation, now: datetime, policy: Policy) -> None:
        """Writes the derived object; `image` is what comes out, without its pixels."""
        from models.imaging.dicom import write_dicom

        with self._target.open("wb") as out:
            if not self._many:
                write_dicom(out, image, derivation, self._frame + b"\0" * (len(self._frame) % 2), now, policy)
                return
            with self._pixels.open("r+b") as data:
                if data.seek(0, 2) % 2:
                    data.write(b"\0")
                data.seek(0)
                write_dicom(out, image, derivation, data, now, policy)
        self._pixels.unlink()


def derived_series(service: Service, bundle: Bundle, order: Order, precision: str) -> str:
    """SeriesInstanceUID of what a job stores."""
    from models.imaging.dicom.identity import derived_series_uid

    backend = service.engine.config.backends[precision]
    derivation = derive(bundle, order.options, backend, precision, NOTHING, "")
    return str(derived_series_uid(order.series, derivation, service.settings.policy))


def precision_of(order: Order, bundle: Bundle, service: Service) -> str:
    """The number format of a job, which decides its UIDs before any image is read."""
    return FAST if order.precision == "fast" and service.engine.supports(bundle, FAST) else EXACT


def assert_same_patient(before: Head, after: Head, series: str) -> str:
    """The UID of a derived object that belongs to patient and study of its source, and to no series but ours.

    Raises IdentityDiffers.
    """
    same = (before.patient, before.study) == (after.patient, after.study)
    if not same or after.series != series or after.sop_instance == before.sop_instance:
        raise IdentityDiffers("a derived object would not belong to its source's patient and study")
    return after.sop_instance


def pixel_digest(path: Path, limits: Limits, in_memory: Limits) -> str:
    """SHA-256 of the pixels of a file, whatever its transfer syntax; that of `Made` where they are the same."""
    from models.imaging.dicom import native_pixels

    digest = hashlib.sha256()
    with open_frames(path, limits, in_memory) as frames:
        for index in range(frames.image.frames):
            digest.update(native_pixels(frames.read(index)))
    return digest.hexdigest()


def bytes_of(row: InstanceRow, unknown: int) -> int:
    """Bytes that an instance has at most without compression, by its row in the PACS's list."""
    if not (row.rows and row.columns):
        return unknown
    return bytes_at_most(row.rows * row.columns * row.frames)


def bytes_at_most(pixels: int) -> int:
    """Bytes that so many pixels have at most: 16 bits of grey, or 8 of three colours."""
    return 3 * pixels
