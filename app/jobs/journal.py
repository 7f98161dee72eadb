"""Which frames of a job are finished, and what was measured on each: lines of JSON, added one by one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.jobs.folder import private_file
from app.pipeline import Record
from models.imaging.correlation import NoiseCorrelation
from models.imaging.reduction import Agreement


class Journal:
    """A frame is finished once its line is whole; a line that a crash cut short does not count.

    The first line says what the frames were made of and by. Frames made otherwise are of no use, so
    that a journal with another first line is begun anew.
    """

    def __init__(self, path: Path, making: Mapping[str, Any]) -> None:
        self._path = path
        self.records: list[Record] = []
        head, *lines = _whole_lines(path) or [None]
        if head != making:
            private_file(path)
            self._append(making)
        else:
            self.records = [_record(line) for line in lines if line]
            os.truncate(path, sum(len(_line(line)) for line in (head, *lines) if line))

    def add(self, record: Record) -> None:
        """Notes the next frame, whose pixels must be on the disk."""
        self._append(_fields(record))
        self.records.append(record)

    def _append(self, content: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(_line(content))
            file.flush()
            os.fsync(file.fileno())


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _whole_lines(path: Path) -> list[dict[str, Any] | None]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _fields(record: Record) -> dict[str, Any]:
    """Numbers come back from JSON as they were, to the last bit."""
    colour = record.colour and vars(record.colour)
    agreement = record.agreement and vars(record.agreement)
    return {**vars(record), "removed": record.removed.tolist(), "colour": colour, "agreement": agreement}


def _record(fields: dict[str, Any]) -> Record:
    colour = fields["colour"] and NoiseCorrelation(**fields["colour"])
    agreement = Agreement(**found) if (found := fields.get("agreement")) else None  # absent before there was a guard
    return Record(**{**fields, "removed": np.array(fields["removed"]), "colour": colour, "agreement": agreement})
