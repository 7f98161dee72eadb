"""`medrestore serve` as a process: it answers, it stops, and it takes its workers with it."""

import io
import json
import os
import signal
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from tests.e2e.server import ROOT, children, still_there


def as_npy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def post(url: str, body: bytes) -> tuple[int, bytes]:
    try:
        with urlopen(Request(url, body, {"Content-Type": "application/x-npy"}), timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(5).normal(3000, 40, (50, 70)).astype(np.int16)


def test_answers_then_stops_on_sigterm_with_status_0(start, pixels) -> None:
    server = start()
    server.wait_ready()
    status, body = post(f"{server.url}/denoise", as_npy(pixels))
    assert status == 200
    restored = np.load(io.BytesIO(body))
    assert restored.dtype == pixels.dtype
    assert restored.std() < pixels.std()
    workers = children(server.process.pid)
    assert workers
    assert server.stop(signal.SIGTERM) == 0
    assert still_there(workers) == set()


def test_stops_on_control_c_without_a_traceback(start) -> None:
    server = start()
    server.wait_ready()
    assert server.stop(signal.SIGINT) in (0, 130)
    assert "Traceback" not in server.log.read_text()


def test_sigterm_during_the_start_ends_it(start) -> None:
    server = start()
    assert server.stop(signal.SIGTERM, limit_s=30) in (0, -signal.SIGTERM)


def test_bad_input_is_refused_and_the_next_request_is_served(start, pixels) -> None:
    server = start()
    server.wait_ready()
    whole = as_npy(pixels)
    for body in (b"", b"random bytes, no image at all", whole[:-100]):
        status, answer = post(f"{server.url}/denoise", body)
        assert status in (400, 415, 422), answer
    assert post(f"{server.url}/denoise?strength=9", whole)[0] == 422
    assert post(f"{server.url}/denoise", whole)[0] == 200


def test_http_and_command_line_give_the_same_pixels(start, pixels, built_repository, tmp_path) -> None:
    server = start()
    server.wait_ready()
    (tmp_path / "in.npy").write_bytes(as_npy(pixels))
    command = [
        sys.executable,
        "-m",
        "medrestore",
        "denoise",
        "in.npy",
        "out.npy",
        "--repository",
        str(built_repository),
    ]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    status, body = post(f"{server.url}/denoise", as_npy(pixels))
    assert status == 200
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(io.BytesIO(body)))


def test_keys_are_wanted_unless_said_otherwise(start, pixels, tmp_path) -> None:
    server = start(access="keys")
    server.wait_ready()
    url = f"{server.url}/denoise"
    assert post(url, as_npy(pixels))[0] == 401
    command = [sys.executable, "-m", "medrestore", "key", "new", "--name", "me", "--scope", "restore"]
    made = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True
    )
    key = made.stdout.strip()
    with urlopen(Request(url, as_npy(pixels), {"Authorization": f"Bearer {key}"}), timeout=60) as answer:
        assert answer.status == 200
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, b"x", {"X-API-Key": "k" * 40_000}), timeout=60)
    with refused.value:
        assert refused.value.code == 431
    log = server.log.read_text()
    assert key not in log
    assert "no API keys yet" in log
    audited = [line for line in map(json.loads, log.splitlines()) if line["event"] == "audit"]
    requests = [(line["outcome"], line.get("who")) for line in audited if line["act"] == "request"]
    assert requests == [("denied", None), ("done", "me")]


def test_open_access_is_said_aloud(start) -> None:
    server = start()
    server.wait_ready()
    assert "access is open" in server.log.read_text()


def test_a_port_in_use_is_a_failure_in_words(start) -> None:
    first = start()
    first.wait_ready()
    second = start("--port", str(first.port))
    assert second.process.wait(60) == 1
    assert "Traceback" not in second.log.read_text()


def test_a_wrong_setting_is_one_line_and_status_2(start) -> None:
    server = start("--port", "99999")
    assert server.process.wait(60) == 2
    assert "port" in server.log.read_text()
    assert len(server.log.read_text().splitlines()) == 1


def test_stops_soon_while_a_client_hangs(start) -> None:
    """A connection that sends a header and no body must not hold the process up for long."""
    import socket

    server = start()
    server.wait_ready()
    with socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n")
        assert server.stop(signal.SIGTERM) == 0
