"""Prometheus metrics of one service, in base units (seconds, bytes, pixels).

Labels come from closed sets: routes as declared, stages, devices, outcomes. Nothing that a caller
sends becomes a label value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

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
from app.catalogue import Catalogue
from app.work import WorkItem

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp beside every series, which nobody asked for

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BYTES = tuple(4.0**power for power in range(5, 16))  # 1 KiB to 1 GiB
LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # unit scale: full range is 1
ITEMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics(EngineObserver):
    """All metrics; one registry per service, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._declare_http()
        self._declare_engine()

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
        self.pixels = Counter("medrestore_restored_pixels", "Pixels of decoded images", ["task"], registry=r)
        self.clipped = Counter("medrestore_clipped_samples", "Samples cut to the storable range", registry=r)
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
        self.run_pixels = Counter("medrestore_run_pixels", "Pixels given to the networks", ["device"], registry=r)
        self.refused = Counter("medrestore_shed", "Refused for lack of room", ["reason"], registry=r)
        self.changes = Counter("medrestore_model_changes", "Changes of the repository taken up", ["change"], registry=r)
        self.shrunk = Counter(
            "medrestore_tile_shrinks", "Times that smaller tiles took over for want of memory", ["model"], registry=r
        )
        self.restarts = Counter("medrestore_worker_restarts", "Worker processes started anew", ["device"], registry=r)

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

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def observe_stages(self, timings: Mapping[str, float]) -> None:
        """Books the stages of one request."""
        for stage, seconds in timings.items():
            self.stages.labels(stage).observe(seconds)

    def shed(self, reason: str) -> None:
        self.refused.labels(reason).inc()

    def batch_ran(self, device: str, items: int, pixels: int, run_s: float) -> None:
        self.run.labels(device).observe(run_s)
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


class _Facts:
    """Which models are served, and which workers are up."""

    def __init__(self, engine: Engine, catalogue: Catalogue) -> None:
        self._engine = engine
        self._catalogue = catalogue

    def collect(self) -> Iterable[Metric]:
        models = InfoMetricFamily("medrestore_model", "A model that is served", labels=["name", "version"])
        for bundle in self._catalogue.bundles:
            manifest = bundle.manifest
            default = str(self._catalogue.current(manifest.name) is bundle).lower()
            facts = {"task": manifest.task, "digest": bundle.digest, "default": default}
            models.add_metric([manifest.name, manifest.version], facts)
        workers = GaugeMetricFamily("medrestore_worker_up", "1 where a worker takes work", labels=["worker", "device"])
        for index, worker in enumerate(self._engine.workers):
            workers.add_metric([str(index), worker.device], float(worker.state in ("idle", "busy")))
        return [models, workers]
