"""Errors of the service, above those of `models.errors`.

    MedRestoreError
    └── ServiceError
        ├── QueueFull            too much work is waiting; come back in `retry_after_s`
        ├── NotReady             no worker can take work: starting, stopping, or broken
        ├── DeadlineExceeded     the caller's deadline passed before there was an answer
        ├── Cancelled            the caller has gone
        ├── WorkerLost           the worker process died twice with this item
        ├── Quarantined          workers have died of this very input before
        ├── RunFailed            the graph failed on this item, alone in its batch
        │   └── OutOfMemory      there was no memory to run it, in tiles as small as may be
        ├── Inconsistent         the result, reduced again, is not the image well enough for strict mode
        ├── BackendUnavailable   a runtime, device or precision is not to be had here
        ├── InvalidBody          the request's body is no image, or not one image
        ├── UploadStalled        nothing of the request's body has come for too long
        ├── NotAcceptable        `Accept` names no type that this image can be written as
        ├── JobsUnavailable      jobs are switched off, or their folder or database cannot be used
        ├── JobNotFound          no job of that id
        ├── NoResult             the job has not ended, or not well
        ├── RangeRefused         the parts that are asked for are not parts of the file
        ├── DiskFull             no room for the files of a job
        ├── JobAbandoned         the service died again and again while it worked on the job
        ├── PacsOff              no PACS is configured
        ├── IdentityDiffers      an object is of another patient, study or series than it must be
        ├── PixelsDiffer         the PACS holds other pixels under the UID of a derived object
        ├── AmbiguousKey         more than one API key in one request
        ├── Unauthenticated      no API key, or one that is not known or not valid any more
        ├── ScopeMissing         the API key is not for this
        ├── Throttled            too many failures of this address to name a key
        ├── KeyBusy              too many requests of this API key at once
        ├── HeadTooLarge         the header fields of the request are over the limit
        └── RuleError            the rules of routing cannot be used

Those of a PACS are in `app.pacs.errors`.

`STATUSES` gives every class its HTTP status, a stable slug and a title; `app.problem` writes them.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from app.pacs import errors as pacs
from models import errors
from models.errors import MedRestoreError

CHALLENGE = 'Bearer realm="medrestore"'  # RFC 6750, section 3


class ServiceError(MedRestoreError):
    """Something about serving a request, not about the request itself."""


class QueueFull(ServiceError):
    """Refused because the waiting work reached a bound (`reason`: "requests", "request bytes", "items",
    "pixels", "bytes"), or is too much for the caller's deadline ("deadline")."""

    def __init__(self, reason: str, retry_after_s: float, position: int = 0, wait_s: float = 0.0) -> None:
        late = "the deadline cannot be met" if reason == "deadline" else f"the queue is full ({reason})"
        super().__init__(f"{late}; try again in {retry_after_s:.0f} s")
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.position = position  # requests that are there already
        self.wait_s = wait_s  # until those are done


class NotReady(ServiceError):
    """No worker can take work now: still starting, shutting down, or none could be started."""


class DeadlineExceeded(ServiceError):
    """The deadline passed while the work was waiting or running."""


class Cancelled(ServiceError):
    """The caller withdrew the work before it was done."""


class WorkerLost(ServiceError):
    """The worker process died while it ran this item, and again on the retry."""


class Quarantined(ServiceError):
    """Two workers have died while they ran this very input, so that it is not run again."""


class RunFailed(ServiceError):
    """The graph raised on this item although it ran alone."""


class OutOfMemory(RunFailed):
    """The device had no memory for the run; smaller tiles, or more memory, would help."""


class Inconsistent(ServiceError):
    """A super-resolved frame does not agree with what it was made of; `measured_db` is None where nothing tells."""

    reason = "inconsistent"

    def __init__(self, measured_db: float | None, required_db: float, frame: int) -> None:
        found = (
            "has no measured pixel far enough from padding to be compared with the image"
            if measured_db is None
            else f"agrees with the image to {measured_db:.1f} dB"
        )
        super().__init__(
            f"frame {frame + 1} of the result, reduced again, {found}; {required_db:g} dB are required: ask for "
            "another model, for a smaller min_consistency, or without strict, and look at X-Consistency-PSNR and -Max"
        )
        self.measured_db = measured_db if measured_db is None else round(measured_db, 3)
        self.required_db = required_db


class BackendUnavailable(ServiceError):
    """A runtime is not installed, a device is absent, or a precision is not supported there."""


class InvalidBody(ServiceError):
    """The body is empty, or a multipart form without exactly one field `file`."""


class UploadStalled(ServiceError):
    """The caller neither sends nor goes; the room that was held for the image is for others."""


class NotAcceptable(ServiceError):
    """None of the accepted media types can be made of this image; `available` can."""

    def __init__(self, available: list[str]) -> None:
        super().__init__(f"this image can be answered as {', '.join(available)}; Accept names none of them")
        self.available = available


class JobsUnavailable(ServiceError):
    """There are no jobs here, and nobody knows when there will be."""

    retry_after_s = None


class JobNotFound(ServiceError):
    """The job was never there, was deleted, or is too old."""


class NoResult(ServiceError):
    """The job has no result: `reason` is its state."""

    def __init__(self, reason: str, retry_after_s: float | None) -> None:
        super().__init__(f"the job is {reason}: only a job that is done has a result")
        self.reason = reason
        self.retry_after_s = retry_after_s


class RangeRefused(ServiceError):
    """`Range` is malformed, or names bytes that a file of `size` bytes does not have."""

    def __init__(self, size: int) -> None:
        super().__init__(f"Range names no parts of a file of {size} bytes: write bytes=FIRST-LAST, counted from 0")
        self.size = size


class DiskFull(ServiceError):
    """The files of a job would pass the budget of the jobs' folder, or fill its disk."""

    retry_after_s = 60.0


class JobAbandoned(ServiceError):
    """Most likely it is the job that kills the service."""

    def __init__(self, deaths: int) -> None:
        super().__init__(f"the service died {deaths} times while it worked on this job, which is given up")


class PacsOff(ServiceError):
    """There is no PACS here; coming back later does not help."""

    retry_after_s = None


class IdentityDiffers(ServiceError):
    """Nothing is stored where patient, study and series are not certain."""


class PixelsDiffer(ServiceError):
    """What was read back from the PACS is not what belongs under that UID."""


class AmbiguousKey(ServiceError):
    """A request carries several keys, of which one would be ignored."""

    headers: ClassVar = {"WWW-Authenticate": f'{CHALLENGE}, error="invalid_request"'}

    def __init__(self) -> None:
        super().__init__("send one API key: either Authorization: Bearer or X-API-Key, and once")


class Unauthenticated(ServiceError):
    """No key came, or a `wrong` one: unknown, removed, expired or misshapen, which the answer does not tell apart."""

    def __init__(self, wrong: bool) -> None:
        super().__init__(
            "the API key is not valid" if wrong else "an API key is needed: send Authorization: Bearer or X-API-Key"
        )
        self.headers = {"WWW-Authenticate": CHALLENGE + (', error="invalid_token"' if wrong else "")}


class ScopeMissing(ServiceError):
    """The key is valid, but lacks the scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this API key lacks the scope {scope}")
        self.headers = {"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{scope}"'}


class Throttled(ServiceError):
    """The address has failed too often within a minute."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many requests without a valid API key; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class KeyBusy(ServiceError):
    """The key has as many requests under way as one key may have."""

    retry_after_s = 1.0

    def __init__(self, most: int) -> None:
        super().__init__(f"this API key has {most} requests under way, which is the most for one key")


class HeadTooLarge(ServiceError):
    """Request line and header fields together are over the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the header of the request is larger than {limit} bytes")


class RuleError(ServiceError):
    """The rules of routing cannot be used as they are; the text names the line and the route."""


class Status(NamedTuple):
    """How one class of errors is answered."""

    code: int
    slug: str  # stable, part of the problem's `type`
    title: str


# Every class of the trees has its own row, abstract ones too: no error is answered by accident.
STATUSES: dict[type[MedRestoreError], Status] = {
    MedRestoreError: Status(500, "internal", "Internal error"),
    errors.ImageError: Status(422, "image", "The image cannot be restored"),
    errors.UnknownFormat: Status(415, "unknown-format", "Not an image format that is read here"),
    errors.CorruptImage: Status(422, "corrupt-image", "Damaged or truncated image"),
    errors.UnsupportedImage: Status(422, "unsupported-image", "Valid file of a kind that is out of scope"),
    errors.NonFinitePixels: Status(422, "non-finite-pixels", "NaN or infinity among the pixels"),
    errors.ImageTooLarge: Status(413, "too-large", "Over a size limit"),
    errors.OptionError: Status(422, "invalid-option", "Option out of range or contradictory"),
    errors.BundleError: Status(503, "model", "The model cannot be used"),
    errors.BundleNotFound: Status(404, "model-not-found", "No such model"),
    errors.BundleInvalid: Status(503, "model-invalid", "The model does not hold what its manifest says"),
    ServiceError: Status(500, "service", "Internal error"),
    QueueFull: Status(429, "queue-full", "Too much work is waiting"),
    NotReady: Status(503, "not-ready", "Not ready"),
    DeadlineExceeded: Status(504, "deadline-exceeded", "Not done in time"),
    Cancelled: Status(499, "cancelled", "The caller has gone"),
    WorkerLost: Status(502, "worker-lost", "The worker died with this image"),
    Quarantined: Status(422, "quarantined", "This image has ended workers before"),
    RunFailed: Status(502, "run-failed", "The model failed on this image"),
    OutOfMemory: Status(503, "out-of-memory", "No memory for this image"),
    Inconsistent: Status(422, "inconsistent", "The result does not agree with the image"),
    BackendUnavailable: Status(503, "backend-unavailable", "No runtime for this model here"),
    InvalidBody: Status(400, "invalid-body", "The body is not one image"),
    UploadStalled: Status(408, "upload-stalled", "The body stopped coming"),
    NotAcceptable: Status(406, "not-acceptable", "No acceptable media type"),
    JobsUnavailable: Status(503, "jobs-unavailable", "No jobs here"),
    JobNotFound: Status(404, "job-not-found", "No such job"),
    NoResult: Status(409, "no-result", "The job has no result"),
    RangeRefused: Status(416, "range", "No such part of the file"),
    DiskFull: Status(507, "disk-full", "No room for the job's files"),
    JobAbandoned: Status(500, "job-abandoned", "The service died with this job"),
    PacsOff: Status(503, "pacs-off", "No PACS here"),
    IdentityDiffers: Status(409, "identity-differs", "Patient, study or series are not certain"),
    PixelsDiffer: Status(409, "pixels-differ", "The PACS holds other pixels under this UID"),
    AmbiguousKey: Status(400, "ambiguous-key", "More than one API key"),
    Unauthenticated: Status(401, "unauthenticated", "No valid API key"),
    ScopeMissing: Status(403, "scope-missing", "Not allowed with this API key"),
    Throttled: Status(429, "throttled", "Too many requests without a valid API key"),
    KeyBusy: Status(429, "key-busy", "Too many requests of one API key"),
    HeadTooLarge: Status(431, "head-too-large", "Header fields too large"),
    RuleError: Status(422, "rules", "The rules cannot be used"),
    pacs.PacsError: Status(502, "pacs", "The PACS failed"),
    pacs.PacsUnavailable: Status(503, "pacs-unavailable", "The PACS cannot be used now"),
    pacs.PacsDenied: Status(502, "pacs-denied", "The PACS does not let the service in"),
    pacs.PacsGone: Status(404, "pacs-gone", "The PACS does not hold this"),
    pacs.PacsRefused: Status(502, "pacs-refused", "The PACS refused the call"),
    pacs.PacsMalformed: Status(502, "pacs-malformed", "The PACS answered against the rules"),
}


def status_of(error: MedRestoreError) -> Status:
    """The row of the error's class."""
    return STATUSES[type(error)]
