"""Log lines: structured, and without anything out of an image."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from app.log import JsonFormatter

PROGRAM = """
import logging, warnings
from app import log
log.configure("info")
log.event("request", status=200)
log.event("detail", logging.DEBUG)
logging.getLogger("pydicom").warning("PatientName Doe^Jane")
logging.getLogger("tifffile").error("Doe^Jane")
warnings.warn("Invalid value Doe^Jane")
logging.getLogger("uvicorn.error").info("started")
try:
    raise ValueError("Doe^Jane")
except ValueError:
    logging.getLogger("asyncio").exception("Task exception\\nfuture: ValueError('Doe^Jane')")
"""


def test_a_server_process_logs_no_header_value() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert "Jane" not in found.stderr + found.stdout
    lines = [json.loads(line) for line in found.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["request", "started", "Task exception"]
    assert lines[0]["status"] == 200
    assert lines[2]["exception"] == "ValueError"


def test_an_exception_is_told_by_class_and_place() -> None:
    try:
        raise KeyError("secret")
    except KeyError as error:
        record = logging.LogRecord("app", logging.ERROR, "", 0, "failed", (), (type(error), error, None))
    line = json.loads(JsonFormatter().format(record))
    assert line["exception"] == "KeyError"
    assert line["places"][0].rpartition(":")[0].endswith("test_log.py")
    assert "secret" not in json.dumps(line)
