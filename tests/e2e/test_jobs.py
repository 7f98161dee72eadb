"""Jobs of a real server that is killed while it works."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from tests.dicom_objects import enhanced, file_of
from tests.e2e.server import Server, children, still_there
from tests.tiny_bundle import write_slow

LIMIT_S = 300.0


def call(server: Server, path: str, body: bytes | None = None) -> bytes:
    with urlopen(Request(server.url + path, body), timeout=60) as answer:
        content: bytes = answer.read()
        return content


def status(server: Server, path: str) -> dict[str, Any]:
    return dict(json.loads(call(server, path)))


def wait(server: Server, path: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    stop = time.monotonic() + LIMIT_S
    while not wanted(job := status(server, path)):
        assert time.monotonic() < stop, job
        time.sleep(0.1)
    return job


def ended(job: dict[str, Any]) -> bool:
    return job["state"] in ("done", "failed", "cancelled")


@pytest.fixture
def launch(tmp_path: Path):
    """Starts servers one after the other on the same folders, of bundles and of jobs."""
    write_slow(tmp_path / "bundles")
    (tmp_path / "medrestore.toml").write_text('jobs = "jobs"\njob_free_bytes = 0\nsuperresolve_x2_model = "slow"\n')
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(tmp_path, "--repository", str(tmp_path / "bundles")))
        servers[-1].wait_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def kill(server: Server) -> None:
    """SIGKILL, as from a power cut or the kernel; the workers follow by themselves."""
    workers = children(server.process.pid)
    server.process.kill()
    server.process.wait()
    assert still_there(workers, 20) == set()


def test_a_killed_service_goes_on_where_it_was_and_gives_the_same_bytes(launch) -> None:
    frames = np.random.default_rng(2).integers(2000, 4000, (12, 8, 8)).astype(np.uint16)
    stream = io.BytesIO()
    np.save(stream, frames)
    server = launch()
    unbroken = call(server, "/superresolve?scale=2", stream.getvalue())
    running = status_of_new(server, stream.getvalue())
    waiting = status_of_new(server, stream.getvalue())
    before = wait(server, running, lambda job: job["frames_done"] >= 1)
    assert not ended(before)
    kill(server)

    server = launch()
    first = status(server, running)
    assert first["frames_done"] >= before["frames_done"]
    for path in (running, waiting):
        job = wait(server, path, ended)
        assert job["state"] == "done", job
        assert call(server, job["result"]) == unbroken
    assert status(server, running)["attempts"] == 2
    assert status(server, waiting)["attempts"] == 1
    assert 'medrestore_jobs_resumed_total{kind="restore"} 1.0' in call(server, "/metrics").decode()
    assert '"event": "job resumed"' in server.log.read_text()


def status_of_new(server: Server, body: bytes) -> str:
    """The path of a new job."""
    job = json.loads(call(server, "/jobs?task=superresolve&scale=2", body))
    return f"/jobs/{job['id']}"


def test_sigterm_puts_a_job_back_without_waiting_for_it(launch) -> None:
    server = launch()
    path = status_of_new(server, file_of(enhanced(200, (2.0,) * 200)))
    wait(server, path, lambda job: job["frames_done"] >= 1)
    assert server.stop(signal.SIGTERM, limit_s=60) == 0
    server = launch()
    job = status(server, path)
    assert job["state"] in ("queued", "running")
    assert job["frames_done"] >= 1
    assert os.path.isdir(server.log.parent / "jobs")
