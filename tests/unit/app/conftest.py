"""Scripted workers in place of processes, for the tests that ask for `script`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scripted_worker import Script, ScriptedProcess


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """What the workers of every engine in the test do, and what they were asked."""
    script = Script()
    monkeypatch.setattr("app.handle.WorkerProcess", lambda device, threads: ScriptedProcess(script, device))
    yield script
    script.gate.set()
