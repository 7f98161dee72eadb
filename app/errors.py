"""Errors of the service, above those of `models.errors`.

    MedRestoreError
    └── ServiceError
        ├── QueueFull            too much work is waiting; come back in `retry_after_s`
        ├── NotReady             no worker can take work: starting, stopping, or broken
        ├── DeadlineExceeded     the caller's deadline passed before there was an answer
        ├── Cancelled            the caller has gone
        ├── WorkerLost           the worker process died twice with this item
        ├── RunFailed            the graph failed on this item, alone in its batch
        └── BackendUnavailable   a runtime, device or precision is not to be had here
"""

from __future__ import annotations

from models.errors import MedRestoreError


class ServiceError(MedRestoreError):
    """Something about serving a request, not about the request itself."""


class QueueFull(ServiceError):
    """Refused because the waiting work reached a bound (`reason`: "items", "pixels" or "bytes")."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(f"the queue is full ({reason}); try again in {retry_after_s:.0f} s")
        self.reason = reason
        self.retry_after_s = retry_after_s


class NotReady(ServiceError):
    """No worker can take work now: still starting, shutting down, or none could be started."""


class DeadlineExceeded(ServiceError):
    """The deadline passed while the work was waiting or running."""


class Cancelled(ServiceError):
    """The caller withdrew the work before it was done."""


class WorkerLost(ServiceError):
    """The worker process died while it ran this item, and again on the retry."""


class RunFailed(ServiceError):
    """The graph raised on this item although it ran alone."""


class BackendUnavailable(ServiceError):
    """A runtime is not installed, a device is absent, or a precision is not supported there."""
