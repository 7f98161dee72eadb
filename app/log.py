"""Structured logs: one JSON object a line, without anything out of an image or its header.

Only loggers of the service and of its web server are written. Decoders are not: their messages
quote header values. Of an exception its class and places are written, never its message.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("medrestore")
OWN = frozenset({"medrestore", "uvicorn", "asyncio"})


class JsonFormatter(logging.Formatter):
    """Writes `time`, `level`, `logger`, `event` and the fields handed to `event`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage().partition("\n")[0],
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1]:
            line |= places(record.exc_info[1])
        return json.dumps(line)


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Logs one event of the service."""
    logger.log(level, name, extra={"fields": fields})


def places(error: BaseException) -> dict[str, Any]:
    """Class of an exception and the code lines it came through, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "exception": type(error).__name__,
        "places": [f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}" for frame in frames],
    }


def configure(level: str) -> None:
    """Sets up this process's logging; called by the server, never by `create_app`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(lambda record: record.name.partition(".")[0] in OWN)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    warnings.simplefilter("ignore")  # a warning of a decoder quotes the header value it is about
