"""One image file in, one answer out: what the routes call, with everything that lives as long as the service.

Decoding, encoding and pixel work run in the event loop's default thread pool, whose size `app.main`
sets; networks run in the engine's worker processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from app.admission import Usage
from app.analysis import NoiseReport, analyse
from app.batching import Engine
from app.body import Upload
from app.cache import Cache
from app.catalogue import Catalogue
from app.errors import BackendUnavailable, Inconsistent, NotReady
from app.facts import content_digest
from app.gate import Gate
from app.log import event
from app.monitoring import Metrics
from app.negotiation import choose, formats_of, parse_accept
from app.offload import offload
from app.options import Options, guarded
from app.pipeline import EXACT, Evidence, Restoration, Stopwatch, choose_precision, demand, restore
from app.runner import EngineRunner
from app.settings import Settings
from app.tiling import Tiling
from app.watch import Watch
from app.work import Priority
from app.workers import Model
from models.bundle import Bundle
from models.errors import BundleInvalid
from models.imaging.codec import MEDIA_TYPES, OUTPUTS, decode, encode
from models.imaging.image import Image
from models.imaging.policy import Policy
from models.imaging.raster import source_of

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What is wanted of an image."""

    task: str  # "denoise" or "superresolve"
    scale: int = 1
    model: str | None = None
    options: Options = field(default_factory=Options)
    strict: bool = False  # superresolve: refuse a result that does not agree with the image
    precision: str | None = None  # "exact", "fast" or the service's rule
    accept: str | None = None
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None  # seconds of `time.monotonic()`


@dataclass(frozen=True)
class Making:
    """How an answer came about."""

    model: str  # name@version
    digest: str  # of the model
    backend: str
    precision: str
    format: str  # of the image that was sent
    shape: tuple[int, ...]  # of its pixels: frames, rows, columns, samples
    lossy: bool  # it had gone through lossy compression
    notes: tuple[str, ...]  # what decoding changed
    position: int  # requests that were there when it was admitted
    wait_s: float  # the estimate, then, of the time that those would take
    timings: dict[str, float]  # stage -> seconds
    adversarial: bool = False  # the model was trained against a critic
    cache: str | None = None  # "hit", "miss" or "joined" where answers are kept

    @property
    def facts(self) -> dict[str, Any]:
        """What the log tells of it."""
        frames, rows, columns, samples = self.shape
        size = {"frames": frames, "rows": rows, "columns": columns, "samples": samples}
        stages = {f"{stage}_s": round(seconds, 4) for stage, seconds in self.timings.items()}
        how = {"model": self.model, "backend": self.backend, "precision": self.precision}
        kept = {"cache": self.cache} if self.cache else {}
        return {**how, "format": self.format, **size, **stages, **kept}


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
        engine.callers = lambda: self.gate.requests
        self.cache = Cache(settings.cache_bytes, _weight) if settings.cache_bytes else None
        metrics.watch_cache(self.cache)

    def check(self, job: Job) -> Bundle:
        """The bundle for a job, before its body is read. Raises what makes the body not worth reading:
        NotReady, BundleNotFound, BundleInvalid, OptionError, NotAcceptable."""
        bundle = self.catalogue.lookup(job.model, job.task, job.scale)
        choose(job.accept, OUTPUTS)
        if self.engine.reason is not None:
            raise NotReady(self.engine.reason)
        self.engine.refuse_late(job.deadline)
        return bundle

    async def restore(self, job: Job, upload: Upload) -> Product:
        """Decodes, restores and encodes one image, or gives the answer that is kept or under way."""
        bundle = self.check(job)
        job = replace(job, options=guarded(job.options, job.strict, bundle, self.settings.consistency_db))
        if self.cache is None:
            return await self._restore(job, bundle, upload)
        key = await asyncio.to_thread(_key, job, bundle, upload)
        peers = (job.priority, job.deadline)  # who waits for the work of another would wait as that one does
        product, origin = await self.cache.answer(key, peers, lambda: self._restore(job, bundle, upload))
        self.metrics.cached.labels(origin).inc()
        making = replace(product.making, cache=origin)
        if origin == "hit":  # nothing of it took time now
            making = replace(making, position=0, wait_s=0.0, timings={})
        return replace(product, making=making)

    async def _restore(self, job: Job, bundle: Bundle, upload: Upload) -> Product:
        watch = Stopwatch()
        with watch("decode"):
            image = await asyncio.to_thread(decode, upload.data, self.settings.limits, upload.hint)
        format = choose(job.accept, formats_of(image))

        async def work(run: EngineRunner) -> Restoration:
            return await restore(image, bundle, job.options, run, self.settings.limits)

        kind = "restore" if job.options.strength else "estimate"
        with self.booking_refusal(bundle):
            restoration, run = await self._run(image, bundle, job, kind, work)
        watch.seconds.update(restoration.timings)
        with watch("encode"):
            data, digest = await offload(
                restoration.image.pixels.size, _encode, restoration, format, self.settings.policy
            )
        making = self._book(job.task, image, bundle, run, watch)
        if job.options.strength:  # else no tile was run
            self._book_tiles(image, bundle, run.precision)
        self._book_evidence(restoration.evidence, image, bundle)
        return Product(data, MEDIA_TYPES[format], digest, restoration.evidence, making)

    async def analyse(self, job: Job, upload: Upload) -> Report:
        """Decodes an image and measures its noise."""
        bundle, watch = self.check(job), Stopwatch()
        with watch("decode"):
            image = await asyncio.to_thread(decode, upload.data, self.settings.limits, upload.hint)

        async def work(run: EngineRunner) -> NoiseReport:
            return await analyse(image, bundle, run)

        with watch("analyse"):
            report, run = await self._run(image, bundle, job, "analyse", work)
        return Report(report, self._book("analyze", image, bundle, run, watch))

    def window(self, image: Image, bundle: Bundle, precision: str) -> int:
        """How many tiles of an image are worked at one time."""
        rows, columns = image.pixels.shape[1:3]
        plan = self.tiling.plan(bundle, rows, columns, precision)
        return self.tiling.window(bundle, plan, self.settings.tiles_in_flight)

    async def _run(
        self, image: Image, bundle: Bundle, job: Job, kind: str, work: Callable[[EngineRunner], Awaitable[T]]
    ) -> tuple[T, EngineRunner]:
        """Does the work with room in the queue held for it; in exact mode where the fast one is not to be had.

        How long work of its `kind` takes with a model is learned from it.
        """
        precision = choose_precision(image, job.precision, self.settings.fast_for_8_bit)
        if not self.engine.supports(bundle, precision):
            precision = EXACT
        window = self.window(image, bundle, precision)
        usage = Usage(*demand(image, bundle, window, self.tiling))
        model, background = (Model(bundle.digest, precision), kind), job.priority is Priority.BULK
        with self.engine.admit(usage, model, image.pixels.size, job.deadline, background) as admission:
            deadline = time.monotonic() + self.settings.timeout_s
            deadline = deadline if job.deadline is None else min(deadline, job.deadline)
            shared = self.engine, bundle.digest, precision, admission
            run = EngineRunner(*shared, deadline, window, job.priority, self.tiling)
            try:
                result = await work(run)
                admission.complete()
                return result, run
            except (BackendUnavailable, BundleInvalid) as exc:
                if precision == EXACT:
                    raise
                event("no fast mode, exact mode serves", logging.WARNING, model=bundle.reference, reason=str(exc))
        return await self._run(image, bundle, replace(job, precision="exact"), kind, work)

    def _book(self, task: str, image: Image, bundle: Bundle, run: EngineRunner, watch: Stopwatch) -> Making:
        timings = watch.seconds | run.timings
        self.metrics.observe_stages(timings)
        self.metrics.pixels.labels(task).inc(image.pixels[..., 0].size)
        return Making(
            model=bundle.reference,
            digest=bundle.digest,
            backend=run.backend,
            precision=run.precision,
            format=image.format,
            shape=image.pixels.shape,
            lossy=image.lossy,
            notes=source_of(image).notes,
            position=run.admission.position,
            wait_s=run.admission.wait_s,
            timings=timings,
            adversarial=bundle.manifest.adversarial,
        )

    def _book_tiles(self, image: Image, bundle: Bundle, precision: str) -> None:
        frames, rows, columns, samples = image.pixels.shape
        plan, planes = self.tiling.plan(bundle, rows, columns, precision), frames * samples
        useful, given = planes * rows * columns, planes * plan.count * plan.shape[0] * plan.shape[1]
        self.metrics.tile_pixels.labels("useful").inc(useful)
        self.metrics.tile_pixels.labels("padding").inc(given - useful)

    def book(self, bundle: Bundle, image: Image, evidence: Evidence) -> None:
        """Counts an image that a job restored; its stages took no caller's time."""
        self.metrics.pixels.labels(bundle.manifest.task).inc(image.pixels[..., 0].size)
        self._book_evidence(evidence, image, bundle)

    @contextmanager
    def booking_refusal(self, bundle: Bundle) -> Iterator[None]:
        """Counts what the guard refuses inside the `with` block."""
        try:
            yield
        except Inconsistent as refusal:
            self.metrics.inconsistent.labels(bundle.reference).inc()
            if refusal.measured_db is not None:
                self.metrics.consistency.labels(bundle.reference).observe(refusal.measured_db)
            raise

    def _book_evidence(self, evidence: Evidence, image: Image, bundle: Bundle) -> None:
        if evidence.consistency is not None and evidence.consistency.psnr is not None:
            self.metrics.consistency.labels(bundle.reference).observe(evidence.consistency.psnr)
        self.metrics.clipped.inc(evidence.clipped)
        if evidence.noise_before is not None:
            self.metrics.level.observe(evidence.noise_before / image.values.real_per_unit)


def _encode(restoration: Restoration, format: str, policy: Policy) -> tuple[bytes, str]:
    data = encode(restoration.image, format, restoration.derivation, policy=policy)
    return data, content_digest(hashlib.sha256(data).digest())


def _key(job: Job, bundle: Bundle, upload: Upload) -> Hashable:
    """What decides an answer: equal keys, equal bytes."""
    formats = frozenset(parse_accept(job.accept).items())
    return hashlib.sha256(upload.data).digest(), bundle.digest, job.options, job.precision, formats


def _weight(product: Product) -> int:
    """Bytes that a kept answer takes, what goes with it included."""
    return len(product.data) + 4096
