"""The audit file: appended, private, reopened, and loud where it cannot be written."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest

from app import log
from app.audit import Audit
from models.errors import OptionError


class Lost:
    times = 0

    def __call__(self) -> None:
        self.times += 1


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_to_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for who in ("a", "b"):
        audit = Audit(path, Lost())
        audit.write("request", who=who, job=None)
        audit.close()
    assert [(line["act"], line["who"]) for line in lines(path)] == [("request", "a"), ("request", "b")]
    assert "job" not in lines(path)[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, audit = tmp_path / "audit.log", Audit(tmp_path / "audit.log", Lost())
    audit.write("one")
    path.rename(tmp_path / "audit.log.1")
    audit.write("two")
    path.unlink()
    audit.write("three")
    assert [line["act"] for line in lines(tmp_path / "audit.log.1")] == ["one"]
    assert [line["act"] for line in lines(path)] == ["three"]
    audit.close()


def test_a_line_that_cannot_be_written_is_told_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost, folder = Lost(), tmp_path / "folder"
    audit = Audit(folder / "audit.log", lost)
    with pytest.raises(OptionError, match="No such file"):
        audit.check()
    with caplog.at_level(logging.ERROR):
        audit.write("request", who="a")
    assert lost.times == 1
    (record,) = caplog.records
    assert record.fields == {"error": "No such file or directory", "act": "request", "who": "a"}  # type: ignore[attr-defined]
    folder.mkdir()
    audit.write("request", who="b")
    assert [line["who"] for line in lines(folder / "audit.log")] == ["b"]
    audit.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    lost = Lost()
    audit = Audit(Path("/dev/full"), lost)
    audit.write("request")
    audit.close()
    assert lost.times == 1
    assert "No space left" in str(caplog.records[0].fields)  # type: ignore[attr-defined]


def test_without_a_file_it_is_in_the_log_however_quiet_that_is(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        log.configure("error")
        Audit(None, Lost()).write("keys read", count=2)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["act"], line["count"]) == ("audit", "keys read", 2)
