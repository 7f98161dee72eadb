"""What can go wrong between the service and a PACS.

    MedRestoreError
    └── PacsError
        ├── PacsUnavailable   not now: down, slow, busy, broken off; the same call may go well later
        ├── PacsDenied        401 or 403, or no credentials to be had: an operator must act
        ├── PacsGone          404 or 410: not there, or not there any more
        ├── PacsRefused       another 3xx or 4xx: the same call will be refused again
        └── PacsMalformed     an answer that breaks the standard, or passes a limit

Messages name neither addresses nor UIDs: they are logged.
"""

from __future__ import annotations

from models.errors import MedRestoreError


class PacsError(MedRestoreError):
    """`reason` is a stable slug; `status` the HTTP status where there was one."""

    def __init__(self, reason: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


class PacsUnavailable(PacsError):
    """No answer, or none now. `reason`: dns, connect, certificate, timeout, dropped, busy (429, 503) or error (5xx);
    `retry_after_s` is what the PACS asked for, None where it did not."""

    def __init__(self, reason: str, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(reason, f"the PACS cannot be used now ({reason})", status)
        self.retry_after_s = retry_after_s


class PacsDenied(PacsError):
    """The credentials are wrong, do not suffice, or cannot be read. `reason`: denied or credentials."""

    def __init__(self, reason: str = "denied", status: int | None = None) -> None:
        super().__init__(reason, f"the PACS does not let the service in ({reason})", status)


class PacsGone(PacsError):
    """What was asked for is not there."""

    def __init__(self, status: int | None = None) -> None:
        super().__init__("gone", "the PACS does not hold what was asked for", status)


class PacsRefused(PacsError):
    """The PACS understood and will not. `reason`: redirect, conflict, too-large or refused."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(
            reason, f"the PACS refused the call ({reason}{f', status {status}' if status else ''})", status
        )


class PacsMalformed(PacsError):
    """`reason`: json, multipart, media-type, answer, paging or too-large."""

    def __init__(self, reason: str, message: str, status: int | None = None) -> None:
        super().__init__(reason, f"the PACS answered against the rules: {message}", status)
