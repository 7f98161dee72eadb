"""The engine: a bounded queue in front of supervised workers. (Signatures first; body follows.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.catalogue import Catalogue
from app.errors import NotReady
from app.queue import Admission, Answer, Array, Cancellation, Priority, QueueLimits, WorkItem

__all__ = [
    "Admission",
    "Answer",
    "Cancellation",
    "Engine",
    "EngineConfig",
    "EngineObserver",
    "Priority",
    "QueueLimits",
    "WorkItem",
    "WorkerStatus",
]


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs; every field has a default that serves on the CPU."""

    devices: tuple[str, ...] = ("cpu",)  # one worker process each
    backends: Mapping[str, str] = field(default_factory=lambda: {"fp32": "onnx", "bf16": "openvino"})  # by precision
    preload: tuple[str, ...] = ("fp32",)  # precisions loaded and self-tested before ready; others at first use
    threads: int | None = None  # of each CPU worker; None: the cores that are there, shared out
    limits: QueueLimits = field(default_factory=QueueLimits)
    batch_items: Mapping[str, int] = field(default_factory=lambda: {"fp32": 1, "bf16": 1})  # at most, by precision
    batch_pixels: int = 4 * 1024**2
    run_limit_s: float = 300.0  # a worker that is busy longer with one batch is killed
    restart_delay_s: float = 0.2  # doubled after each death, to `restart_delay_max_s`
    restart_delay_max_s: float = 30.0


class EngineObserver:
    """Called on the event loop for metrics; subclass what you publish."""

    def accepted(self, item: WorkItem) -> None: ...
    def shed(self, reason: str) -> None: ...  # "items", "pixels", "bytes", "not_ready"
    def batch_ran(self, device: str, items: int, pixels: int, run_s: float) -> None: ...
    def finished(self, item: WorkItem, outcome: str, queue_s: float, run_s: float) -> None: ...
    # outcome: "ok", "cancelled", "expired", "failed", "lost", "stopped"
    def worker_restarted(self, device: str) -> None: ...


@dataclass(frozen=True)
class WorkerStatus:
    """One worker, as readiness and metrics show it."""

    device: str
    state: str  # "starting", "idle", "busy", "restarting", "failed", "stopped"
    pid: int | None
    restarts: int
    detail: str  # why it failed, else ""


class Engine:
    """Runs work items on worker processes. All methods belong to one event loop."""

    def __init__(
        self, catalogue: Catalogue, config: EngineConfig = EngineConfig(), observer: EngineObserver | None = None
    ) -> None: ...

    async def start(self) -> None:
        """Starts the workers and returns at once; `ready` turns true when one has loaded and self-tested."""

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Raises NotReady with the reason when no worker becomes ready."""

    async def stop(self) -> None:
        """Fails what waits with NotReady and ends the workers within 2 seconds."""

    async def run(self, item: WorkItem) -> dict[str, Array]:
        """`submit`, arrays alone."""
        return (await self.submit(item)).arrays

    async def submit(self, item: WorkItem) -> Answer:
        """The answer. Raises QueueFull, NotReady, DeadlineExceeded, Cancelled, WorkerLost, RunFailed,
        BundleNotFound, BundleInvalid (self-test failed), BackendUnavailable. Cancelling the awaiting task withdraws
        the item."""
        raise NotReady("the engine is being written")

    def admit(self, items: int, pixels: int, bytes: int) -> Admission:
        """Takes room for a whole request at once (context manager), so that it is refused before its first tile
        or not at all. Raises QueueFull. Hand it to each WorkItem as `admission`."""
        raise NotReady("the engine is being written")

    ready: bool
    workers: Sequence[WorkerStatus]
    queued_items: int
    queued_pixels: int
    running_items: int
    backlog_s: float  # estimated seconds until a new item would start
