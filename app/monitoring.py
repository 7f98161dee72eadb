"""Prometheus metrics of one service, in base units (seconds, bytes, pixels).

Labels come from closed sets: routes as declared, stages, devices, outcomes. Nothing that a caller
sends becomes a label value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from app.batching import Engine, EngineObserver
from app.build import build_facts
from app.cache import Cache
from app.catalogue import Catalogue
from app.jobs.engine import JobEngine
from app.jobs.ledger import JobObserver
from app.jobs.store import State
from app.pacs.router import RouterObserver
from app.schemas import PacsState
from app.work import WorkItem

if TYPE_CHECKING:
    from app.pacs.desk import Pacs

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp beside every series, which nobody asked for

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
BYTES = tuple(4.0**power for power in range(5, 16))  # 1 KiB to 1 GiB
LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # unit scale: full range is 1
DECIBELS = (15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 100)
FILLS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
ITEMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

PACS_STATES = get_args(PacsState)


class Metrics(EngineObserver, JobObserver, RouterObserver):
    """All metrics; one registry per service, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._declare_http()
        self._declare_engine()
        self._declare_jobs()

    def _declare_http(self) -> None:
        r = self.registry
        route = ["route"]
        self.requests = Counter("medrestore_requests", "Answered requests", ["route", "method", "status"], registry=r)
        self.duration = Histogram(
            "medrestore_request_duration_seconds", "Time to answer", route, buckets=SECONDS, registry=r
        )
        self.open = Gauge("medrestore_requests_open", "Requests being answered", registry=r)
        self.received = Histogram("medrestore_request_size_bytes", "Size of uploads", route, buckets=BYTES, registry=r)
        self.sent = Histogram("medrestore_response_size_bytes", "Size of answers", route, buckets=BYTES, registry=r)
        self.stages = Histogram(
            "medrestore_stage_duration_seconds", "Time by stage", ["stage"], buckets=SECONDS, registry=r
        )
        self.problems = Counter("medrestore_problems", "Errors answered, by kind", ["problem"], registry=r)
        self.audit_lost = Counter("medrestore_audit_lost", "Audit lines that could not be written", registry=r)
        self.pixels = Counter("medrestore_restored_pixels", "Pixels of decoded images", ["task"], registry=r)
        self.clipped = Counter("medrestore_clipped_samples", "Samples cut to the storable range", registry=r)
        self.tile_pixels = Counter(
            "medrestore_tile_pixels", "Pixels of tiles: the image's own, and padding", ["kind"], registry=r
        )
        self.cached = Counter("medrestore_cache_answers", "Answers by where they came from", ["origin"], registry=r)
        self.consistency = Histogram(
            "medrestore_consistency_decibels",
            "PSNR of super-resolved images, reduced again, beside what they were made of",
            ["model"],
            buckets=DECIBELS,
            registry=r,
        )
        self.inconsistent = Counter(
            "medrestore_inconsistent", "Super-resolved images that strict mode refused", ["model"], registry=r
        )
        self.level = Histogram(
            "medrestore_noise_level", "Noise before, full range is 1", (), buckets=LEVELS, registry=r
        )

    def _declare_engine(self) -> None:
        r = self.registry
        self.items = Counter("medrestore_items", "Finished tiles and frames", ["graph", "outcome"], registry=r)
        self.queue = Histogram("medrestore_queue_duration_seconds", "Wait of one item", (), buckets=SECONDS, registry=r)
        self.run = Histogram(
            "medrestore_batch_duration_seconds", "Run of one batch", ["device"], buckets=SECONDS, registry=r
        )
        self.batch = Histogram("medrestore_batch_items", "Items of one batch", ["device"], buckets=ITEMS, registry=r)
        self.fill = Histogram(
            "medrestore_batch_fill",
            "Share of a batch's room that was used",
            ["device"],
            buckets=FILLS,
            registry=r,
        )
        self.run_pixels = Counter("medrestore_run_pixels", "Pixels given to the networks", ["device"], registry=r)
        self.refused = Counter("medrestore_shed", "Refused for lack of room", ["reason"], registry=r)
        self.changes = Counter("medrestore_model_changes", "Changes of the repository taken up", ["change"], registry=r)
        self.shrunk = Counter(
            "medrestore_tile_shrinks", "Times that smaller tiles took over for want of memory", ["model"], registry=r
        )
        self.restarts = Counter("medrestore_worker_restarts", "Worker processes started anew", ["device"], registry=r)

    def _declare_jobs(self) -> None:
        r = self.registry
        self.job_duration = Histogram(
            "medrestore_job_duration_seconds",
            "From a job's first start to its end",
            ["kind", "state"],
            buckets=JOB_SECONDS,
            registry=r,
        )
        self.jobs_resumed = Counter(
            "medrestore_jobs_resumed", "Jobs gone on with after the service died", ["kind"], registry=r
        )
        self.pacs_calls = Histogram(
            "medrestore_pacs_call_duration_seconds", "Calls to a PACS", ["verb", "outcome"], buckets=SECONDS, registry=r
        )
        self.series = Counter(
            "medrestore_pacs_series", "New series by what routing did with them", ["pacs", "decision"], registry=r
        )
        self.feed_lag = Gauge(
            "medrestore_pacs_feed_lag",
            "Changes of a PACS still to be dealt with; series without a feed",
            ["pacs"],
            registry=r,
        )
        self.feed_time = Gauge(
            "medrestore_pacs_feed_read_timestamp_seconds",
            "Last time that new series were asked for",
            ["pacs"],
            registry=r,
        )
        self.pacs_instances = Counter(
            "medrestore_pacs_instances", "Instances of PACS jobs by outcome", ["outcome"], registry=r
        )

    def watch_pacs(self, pacs: Pacs) -> None:
        """Adds the state of PACS jobs."""
        jobs = Gauge("medrestore_pacs_jobs", "PACS jobs that are kept, by state", ["state"], registry=self.registry)
        for state in PACS_STATES:
            jobs.labels(state).set_function(partial(pacs.count, state))
        waiting = Gauge(
            "medrestore_pacs_oldest_waiting_seconds", "Wait of the PACS job that waits longest", registry=self.registry
        )
        waiting.set_function(lambda: pacs.oldest_waiting_s or 0.0)

    def series_judged(self, pacs: str, decision: str) -> None:
        self.series.labels(pacs, decision).inc()

    def feed_read(self, pacs: str, lag: int) -> None:
        self.feed_lag.labels(pacs).set(lag)
        self.feed_time.labels(pacs).set_to_current_time()

    def pacs_called(self, verb: str, outcome: str, seconds: float) -> None:
        """A call to a PACS was answered or failed: status class or reason of the failure."""
        self.pacs_calls.labels(verb, outcome).observe(seconds)

    def instance_settled(self, outcome: str) -> None:
        """An instance of a PACS job was stored, skipped, failed or gone."""
        self.pacs_instances.labels(outcome).inc()

    def watch_jobs(self, jobs: JobEngine) -> None:
        """Adds the number of jobs in each state."""
        gauge = Gauge("medrestore_jobs", "Jobs that are kept, by state", ["state"], registry=self.registry)
        for state in State:
            gauge.labels(state).set_function(partial(_count, jobs, state))

    def watch(self, engine: Engine, catalogue: Catalogue) -> None:
        """Adds the gauges that are read off the engine and the catalogue at each scrape."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "medrestore_queue_items": ("Items waiting", lambda: engine.queued_items),
            "medrestore_queue_pixels": ("Pixels waiting", lambda: engine.queued_pixels),
            "medrestore_running_items": ("Items running", lambda: engine.running_items),
            "medrestore_backlog_seconds": ("Estimated wait of a new item", lambda: engine.backlog_s),
            "medrestore_ready": ("1 where work is taken", lambda: float(engine.ready)),
        }
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)
        self.registry.register(_Facts(engine, catalogue))

    def watch_cache(self, cache: Cache[Any] | None) -> None:
        """Adds the gauge of what the cache holds; 0 where there is none."""
        held = Gauge("medrestore_cache_bytes", "Bytes of answers that are kept", registry=self.registry)
        held.set_function(lambda: cache.bytes if cache else 0)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def observe_stages(self, timings: Mapping[str, float]) -> None:
        """Books the stages of one request."""
        for stage, seconds in timings.items():
            self.stages.labels(stage).observe(seconds)

    def shed(self, reason: str) -> None:
        self.refused.labels(reason).inc()

    def batch_ran(self, device: str, items: int, pixels: int, fill: float, run_s: float) -> None:
        self.run.labels(device).observe(run_s)
        self.fill.labels(device).observe(fill)
        self.batch.labels(device).observe(items)
        self.run_pixels.labels(device).inc(pixels)

    def finished(self, item: WorkItem, outcome: str, queue_s: float, run_s: float) -> None:
        self.items.labels(item.graph, outcome).inc()
        self.queue.observe(queue_s)

    def models_changed(self, change: str) -> None:
        self.changes.labels(change).inc()

    def tiles_shrunk(self, reference: str) -> None:
        """Smaller tiles took over for a model."""
        self.shrunk.labels(reference).inc()

    def worker_restarted(self, device: str) -> None:
        self.restarts.labels(device).inc()

    def job_finished(self, kind: str, state: str, duration_s: float | None) -> None:
        if duration_s is not None:
            self.job_duration.labels(kind, state).observe(duration_s)

    def job_resumed(self, kind: str) -> None:
        self.jobs_resumed.labels(kind).inc()


def _count(jobs: JobEngine, state: State) -> float:
    return float(jobs.counts[state])


class _Facts:
    """Which models are served, which workers are up, their memory, and which build this is."""

    def __init__(self, engine: Engine, catalogue: Catalogue) -> None:
        self._engine = engine
        self._catalogue = catalogue
        self._build = build_facts()

    def collect(self) -> Iterable[Metric]:
        models = InfoMetricFamily("medrestore_model", "A model that is served", labels=["name", "version"])
        for bundle in self._catalogue.bundles:
            manifest = bundle.manifest
            default = str(self._catalogue.current(manifest.name) is bundle).lower()
            facts = {"task": manifest.task, "digest": bundle.digest, "default": default}
            facts["adversarial"] = str(manifest.adversarial).lower()
            models.add_metric([manifest.name, manifest.version], facts)
        workers = GaugeMetricFamily("medrestore_worker_up", "1 where a worker takes work", labels=["worker", "device"])
        memory = GaugeMetricFamily(
            "medrestore_worker_resident_bytes", "Memory of a worker that is in RAM", labels=["worker", "device"]
        )
        for index, worker in enumerate(self._engine.workers):
            workers.add_metric([str(index), worker.device], float(worker.state in ("idle", "busy")))
            if worker.pid is not None and (held := resident_bytes(worker.pid)) is not None:
                memory.add_metric([str(index), worker.device], held)
        build = InfoMetricFamily("medrestore_build", "Versions of what runs", value=self._build)
        return [models, workers, memory, build]


def resident_bytes(pid: int) -> int | None:
    """Memory of a process that is in RAM; None where it cannot be read, or the process has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
