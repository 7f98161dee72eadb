"""The audit log: one JSON line for each act that somebody may have to answer for.

Who (the key's name), from where, what (method and route as declared, never the path that was sent), how it ended, the
request's and the job's id, counts. No key, no name, UID or pixel of a patient.

A line tells the outcome, so it is written when the act is over. One that cannot be written cannot undo the act, and a
full disk shall not stop a hospital's work: there is no strict mode. It is told instead: the line goes to the service's
own log as an error, and a metric counts it. A file that cannot be opened at the start keeps the service from starting.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.types import Scope

from app.log import event
from models.errors import OptionError

# Written whatever `log_level` is: who set that for a quieter log did not mean this one.
audit_logger = logging.getLogger("medrestore.audit")
audit_logger.setLevel(logging.INFO)

COUNTS = ("job", "pacs", "frames", "instances", "request_bytes")  # of a request's facts, as far as it has them
READS = frozenset({"GET", "HEAD", "OPTIONS"})
AUDITED_READS = ("/result",)  # hand out images


class Audit:
    """Appends to a file, or to the service's log where there is none. The file may be moved away at any time
    (logrotate): the next line begins a new one. `lost` is called for each line that could not be written."""

    def __init__(self, path: Path | None, lost: Callable[[], None]) -> None:
        self._path = path
        self._lost = lost
        self._file: int | None = None

    def check(self) -> None:
        """Raises OptionError where the file cannot be written."""
        if self._path:
            try:
                self._open(self._path)
            except OSError as error:
                raise OptionError(f"audit {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def write(self, act: str, **facts: Any) -> None:
        """Writes one act; facts that are None are left out."""
        told = {name: value for name, value in facts.items() if value is not None}
        if self._path is None:
            audit_logger.info("audit", extra={"fields": {"act": act, **told}})
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "act": act, **told}
        try:
            self._append(self._path, json.dumps(line).encode() + b"\n")
        except OSError as error:
            self._lost()
            event("audit line not written", logging.ERROR, error=os.strerror(error.errno or 0), act=act, **told)

    def request(self, scope: Scope, method: str, route: str, status: int, facts: Mapping[str, Any]) -> None:
        """Writes the line of an answered request, where it has one: whatever was refused for want of a right (each
        until `app.throttle` takes over), and whatever was let in and changes something or hands out an image."""
        act = scope.get("access")
        if act is None or (act == "allowed" and method in READS and not route.endswith(AUDITED_READS)):
            return
        self.write(
            "request",
            who=scope.get("caller"),
            address=address_of(scope),
            method=method,
            route=route,
            outcome="denied" if act == "denied" else "done" if status < HTTPStatus.BAD_REQUEST else "failed",
            status=status,
            request_id=scope["request_id"],
            **{name: facts.get(name) for name in COUNTS},
        )

    def _append(self, path: Path, line: bytes) -> None:
        if os.write(self._open(path), line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self, path: Path) -> int:
        """The open file, if it is still the one of that name; else a new one."""
        if self._file is not None and not _is(self._file, path):
            self.close()
        if self._file is None:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file


def address_of(scope: Scope) -> str:
    """Where a request came from; behind a proxy that the web server trusts, whom the proxy names."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
