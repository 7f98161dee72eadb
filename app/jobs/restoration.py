"""Jobs of kind `restore`: one image file denoised or super-resolved, frame by frame on the disk.

Memory holds one frame, whatever their number. A finished frame stays finished: a job that was cut
off goes on at the next one, unless model, precision or runtime have changed meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import BackendUnavailable
from app.facts import content_digest, facts_of
from app.jobs.folder import JobFolder, private_file
from app.jobs.journal import Journal
from app.jobs.run import Run
from app.log import event
from app.negotiation import choose, formats_of
from app.offload import whole
from app.options import Options, guarded
from app.pipeline import EXACT, Record, Stopwatch, check, choose_precision, derive, restore_frames, summarise
from app.runner import BulkRunner
from app.service import Service
from models.bundle import Bundle, sha256_of
from models.errors import BundleInvalid
from models.imaging.codec import MEDIA_TYPES
from models.imaging.frames import FrameFile, Frames, open_frames
from models.imaging.image import Derivation, Image
from models.imaging.policy import Policy
from models.imaging.raster import source_of

KIND = "restore"
INPUT, FRAMES, JOURNAL, RESULT, OUTCOME = "input", "frames", "journal", "result", "outcome"  # files of a job


@dataclass(frozen=True)
class Wanted:
    """The parameters of a job."""

    task: str
    scale: int
    model: str  # name@version
    strength: float
    sigma: float | None
    precision: str | None
    accept: str | None
    named: str | None = None  # the model as the caller named it, if he did
    strict: bool = False
    min_consistency: float | None = None

    def options(self, bundle: Bundle, otherwise: float) -> Options:
        """Of the work with this model; see `app.pipeline.guarded`."""
        return guarded(Options(self.strength, self.sigma, self.min_consistency), self.strict, bundle, otherwise)


class RestorationHandler:
    """Restores the file `input` of a job's folder into its file `result`."""

    def __init__(self, service: Service, folder: JobFolder) -> None:
        self._service = service
        self._folder = folder

    async def __call__(self, run: Run) -> dict[str, Any]:
        """The outcome: facts of the answer, and what its download needs."""
        if outcome := await asyncio.to_thread(_concluded, run.folder):
            return outcome
        wanted = Wanted(**run.parameters)
        bundle = self._service.catalogue.lookup(wanted.model, wanted.task, wanted.scale)
        with ExitStack() as stack:
            opening = open_frames(run.folder / INPUT, self._service.settings.job_limits, self._service.settings.limits)
            source = await asyncio.to_thread(stack.enter_context, opening)
            await whole(asyncio.to_thread(source.check))
            settings = self._service.settings
            options = wanted.options(bundle, settings.consistency_db)
            check(source.image, bundle, options, settings.job_limits)
            precision = choose_precision(source.image, wanted.precision, settings.fast_for_8_bit)
            if not self._service.engine.supports(bundle, precision):
                precision = EXACT
            try:
                return await self._restore(run, wanted, bundle, options, source, precision)
            except (BackendUnavailable, BundleInvalid) as exc:
                if precision == EXACT:
                    raise
                event("no fast mode, exact mode serves", logging.WARNING, model=bundle.reference, reason=str(exc))
            return await self._restore(run, wanted, bundle, options, source, EXACT)

    async def _restore(
        self, run: Run, wanted: Wanted, bundle: Bundle, options: Options, source: Frames, precision: str
    ) -> dict[str, Any]:
        engine, image = self._service.engine, source.image
        format = choose(wanted.accept, formats_of(image))
        backend = engine.config.backends[precision]
        tiles = self._service.tiling.mark(bundle, image, precision)
        making = {"digest": bundle.digest, "precision": precision, "backend": backend, "format": format}
        making |= {"tiles": tiles} if tiles else {}
        frames = _Disk(run, source, image_after(image, wanted.scale), format, making)
        window = self._service.window(image, bundle, precision)
        runner = BulkRunner(engine, bundle.digest, precision, window, self._service.tiling)
        await run.progress(frames.done, image.frames)
        async with self._folder.promise(run.id, bytes_needed(run.folder / INPUT, image, wanted.scale)):
            with self._service.booking_refusal(bundle):
                await restore_frames(frames, range(frames.done, image.frames), bundle, options, runner, Stopwatch())
            evidence = summarise(frames.journal.records, image, bundle)
            derivation = derive(bundle, options, backend, precision, evidence, tiles)
            encoding = asyncio.to_thread(frames.encode, derivation, self._service.settings.policy)
            result = await whole(encoding)
        self._service.book(bundle, image, evidence)
        made = bundle.reference, bundle.digest, bundle.manifest.adversarial, backend, precision
        facts = facts_of(evidence, *made, image.lossy, source_of(image).notes)
        outcome = {"facts": facts, "format": format, "media_type": MEDIA_TYPES[format], **result}
        await whole(asyncio.to_thread(_conclude, run.folder, outcome))
        return outcome


class _Disk:
    """Frames from the job's input into its file of finished frames; see `app.pipeline.Frames`."""

    def __init__(self, run: Run, source: Frames, after: Image, format: str, making: dict[str, Any]) -> None:
        self._run = run
        self._source = source
        self._file = FrameFile(run.folder / FRAMES, after, format)
        if not (run.folder / FRAMES).exists():
            private_file(run.folder / FRAMES)
        self.journal = Journal(run.folder / JOURNAL, making)

    @property
    def done(self) -> int:
        """Frames that are finished."""
        return len(self.journal.records)

    async def take(self, index: int) -> Image:
        return await whole(asyncio.to_thread(self._source.read, index))

    async def put(self, index: int, frame: Image, record: Record) -> None:
        """Returns when the frame is on the disk, and said to be."""

        def keep() -> None:
            self._file.write(index, frame)
            self.journal.add(record)

        await whole(asyncio.to_thread(keep))
        await self._run.progress(self.done, self._file.image.frames)

    def encode(self, derivation: Derivation, policy: Policy) -> dict[str, Any]:
        """Makes the result of all frames; gives its size and digest."""
        result = private_file(self._run.folder / RESULT)
        self._file.encode(result, derivation, policy=policy)
        return {"bytes": result.stat().st_size, "content_digest": content_digest(bytes.fromhex(sha256_of(result)))}


def _conclude(folder: Path, outcome: dict[str, Any]) -> None:
    """Keeps the outcome, so that a crash from here on costs nothing, and deletes all but the result."""
    part = private_file(folder / f"{OUTCOME}.part")
    with part.open("w") as file:
        json.dump(outcome, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / OUTCOME)
    for name in (INPUT, FRAMES, JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _concluded(folder: Path) -> dict[str, Any] | None:
    """The outcome of a run that was cut off just after its end."""
    path = folder / OUTCOME
    return json.loads(path.read_text()) if path.exists() else None


def bytes_needed(source: Path, image: Image, scale: int) -> int:
    """What a job's folder holds at most: the file that was sent, the finished frames, and the result."""
    return source.stat().st_size + 2 * image_after(image, scale).pixels.nbytes


def image_after(image: Image, scale: int) -> Image:
    """What becomes of `image`: shape and type, without values."""
    frames, rows, columns, samples = image.pixels.shape
    pixels = np.broadcast_to(np.zeros((), image.pixels.dtype), (frames, scale * rows, scale * columns, samples))
    return image.with_pixels(pixels, scale)
