"""One image file in, one answer out: what the routes call, with everything that lives as long as the service.

Decoding, encoding and pixel work run in the event loop's default thread pool, whose size `app.main`
sets; networks run in the engine's worker processes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.analysis import NoiseReport, analyse
from app.batching import Engine
from app.body import Upload
from app.catalogue import Catalogue
from app.errors import BackendUnavailable, NotReady
from app.gate import Gate
from app.log import event
from app.monitoring import Metrics
from app.negotiation import choose, formats_of
from app.pipeline import (
    EXACT,
    Evidence,
    Options,
    Restoration,
    Stopwatch,
    choose_precision,
    demand,
    restore,
)
from app.runner import EngineRunner
from app.settings import Settings
from app.tiling import Tiling
from app.watch import Watch
from models.bundle import Bundle
from models.errors import BundleInvalid
from models.imaging.codec import MEDIA_TYPES, OUTPUTS, decode, encode
from models.imaging.image import Image
from models.imaging.raster import source_of

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What is wanted of an image."""

    task: str  # "denoise" or "superresolve"
    scale: int = 1
    model: str | None = None
    options: Options = field(default_factory=Options)
    precision: str | None = None  # "exact", "fast" or the service's rule
    accept: str | None = None


@dataclass(frozen=True)
class Making:
    """How an answer came about."""

    bundle: Bundle
    backend: str
    precision: str
    format: str  # of the image that was sent
    shape: tuple[int, ...]  # of its pixels: frames, rows, columns, samples
    lossy: bool  # it had gone through lossy compression
    notes: tuple[str, ...]  # what decoding changed
    timings: dict[str, float]  # stage -> seconds

    @property
    def facts(self) -> dict[str, Any]:
        """What the log tells of it."""
        frames, rows, columns, samples = self.shape
        size = {"frames": frames, "rows": rows, "columns": columns, "samples": samples}
        stages = {f"{stage}_s": round(seconds, 4) for stage, seconds in self.timings.items()}
        how = {"model": self.bundle.reference, "backend": self.backend, "precision": self.precision}
        return {**how, "format": self.format, **size, **stages}


@dataclass(frozen=True)
class Product:
    """An encoded answer and what its headers tell."""

    data: bytes
    media_type: str
    content_digest: str  # RFC 9530
    evidence: Evidence
    making: Making


@dataclass(frozen=True)
class Report:
    """A noise report and what made it."""

    noise: NoiseReport
    making: Making


class Service:
    """Holds the catalogue, the engine and the counters; everything but the settings can be watched from outside."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, engine: Engine, metrics: Metrics, watch: Watch
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.engine = engine
        self.metrics = metrics
        self.watch = watch
        self.tiling = Tiling(settings.memory_budget, metrics.tiles_shrunk)
        self.gate = Gate(settings.requests, settings.request_bytes)

    def check(self, job: Job) -> Bundle:
        """The bundle for a job, before its body is read. Raises what makes the body not worth reading:
        NotReady, BundleNotFound, BundleInvalid, OptionError, NotAcceptable."""
        bundle = self.catalogue.lookup(job.model, job.task, job.scale)
        choose(job.accept, OUTPUTS)
        if self.engine.reason is not None:
            raise NotReady(self.engine.reason)
        return bundle

    async def restore(self, job: Job, upload: Upload) -> Product:
        """Decodes, restores and encodes one image."""
        bundle, watch = self.check(job), Stopwatch()
        with watch("decode"):
            image = await asyncio.to_thread(decode, upload.data, self.settings.limits, upload.hint)
        format = choose(job.accept, formats_of(image))

        async def work(run: EngineRunner) -> Restoration:
            return await restore(image, bundle, job.options, run, self.settings.limits)

        restoration, run = await self._run(image, bundle, job.precision, work)
        watch.seconds.update(restoration.timings)
        with watch("encode"):
            data, digest = await asyncio.to_thread(_encode, restoration, format)
        making = self._book(job.task, image, bundle, run, watch)
        self._book_evidence(restoration.evidence, image)
        return Product(data, MEDIA_TYPES[format], digest, restoration.evidence, making)

    async def analyse(self, job: Job, upload: Upload) -> Report:
        """Decodes an image and measures its noise."""
        bundle, watch = self.check(job), Stopwatch()
        with watch("decode"):
            image = await asyncio.to_thread(decode, upload.data, self.settings.limits, upload.hint)

        async def work(run: EngineRunner) -> NoiseReport:
            return await analyse(image, bundle, run)

        with watch("analyse"):
            report, run = await self._run(image, bundle, job.precision, work)
        return Report(report, self._book("analyze", image, bundle, run, watch))

    async def _run(
        self, image: Image, bundle: Bundle, asked: str | None, work: Callable[[EngineRunner], Awaitable[T]]
    ) -> tuple[T, EngineRunner]:
        """Does the work with room in the queue held for it; in exact mode where the fast one is not to be had."""
        precision = choose_precision(image, asked, self.settings.fast_for_8_bit)
        if not self.engine.supports(bundle, precision):
            precision = EXACT
        rows, columns = image.pixels.shape[1:3]
        plan = self.tiling.plan(bundle, rows, columns, precision)
        window = self.tiling.window(bundle, plan, self.settings.tiles_in_flight)
        with self.engine.admit(*demand(image, bundle, window, self.tiling)) as admission:
            deadline = time.monotonic() + self.settings.timeout_s
            run = EngineRunner(self.engine, bundle.digest, precision, admission, deadline, window, self.tiling)
            try:
                return await work(run), run
            except (BackendUnavailable, BundleInvalid) as exc:
                if precision == EXACT:
                    raise
                event("no fast mode, exact mode serves", logging.WARNING, model=bundle.reference, reason=str(exc))
        return await self._run(image, bundle, "exact", work)

    def _book(self, task: str, image: Image, bundle: Bundle, run: EngineRunner, watch: Stopwatch) -> Making:
        timings = watch.seconds | run.timings
        self.metrics.observe_stages(timings)
        self.metrics.pixels.labels(task).inc(image.pixels[..., 0].size)
        shape, notes = image.pixels.shape, source_of(image).notes
        return Making(bundle, run.backend, run.precision, image.format, shape, image.lossy, notes, timings)

    def _book_evidence(self, evidence: Evidence, image: Image) -> None:
        self.metrics.clipped.inc(evidence.clipped)
        if evidence.noise_before is not None:
            self.metrics.level.observe(evidence.noise_before / image.values.real_per_unit)


def _encode(restoration: Restoration, format: str) -> tuple[bytes, str]:
    data = encode(restoration.image, format, restoration.derivation)
    return data, f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
