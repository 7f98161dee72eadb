"""What the engine tells about its work, for metrics."""

from __future__ import annotations

from app.work import WorkItem


class EngineObserver:
    """Called on the event loop for metrics; override what is published."""

    def shed(self, reason: str) -> None:
        """Refused: what `QueueFull.reason` may be, or "quarantined" or "not_ready"."""

    def batch_ran(self, device: str, items: int, pixels: int, fill: float, run_s: float) -> None:
        """A graph ran once; `fill` is its share of the items that it might have had."""

    def finished(self, item: WorkItem, outcome: str, queue_s: float, run_s: float) -> None:
        """Completed: "ok", "cancelled", "expired", "failed", "lost" or "stopped"."""

    def models_changed(self, change: str) -> None:
        """The repository changed: a version was "offered", "withdrawn" or "refused", or another is "default"."""

    def worker_restarted(self, device: str) -> None:
        """A worker died and is being started again."""
