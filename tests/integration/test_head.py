"""A head without an end, at the real web server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import pytest
import uvicorn

from app import head
from app.head import HEAD_BYTES, HeadProtocol


async def app(scope, receive, send) -> None:
    """Answers the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"%07d" % length})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=HeadProtocol, lifespan="off", log_config=None))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def talk(port: int, *parts: bytes) -> bytes:
    """All that is answered until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        answer = b""
        try:
            for part in parts:
                line.sendall(part)
            while more := line.recv(65536):
                answer += more
        except ConnectionError:  # the server hung up while we were sending
            pass
        return answer


def test_a_head_within_the_bound_and_a_large_body_are_served(port: int) -> None:
    fields = b"X-Long: " + b"a" * (HEAD_BYTES - 200)
    request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000\r\n" + fields + b"\r\n\r\n"
    assert b"0100000" in talk(port, request, b"b" * 100_000)


def test_requests_on_one_connection_count_each_by_itself(port: int) -> None:
    one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\nX: " + b"a" * 20_000 + b"\r\n\r\n" + b"b" * 20_000
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert talk(port, one * 4 + last).count(b"0020000") == 4


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", b"GET /"])
def test_a_head_without_an_end_is_cut_off(port: int, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(start)
        answer, sent = b"", 0
        try:
            while sent < 50 * 2**20:
                line.sendall(b"a" * 16384)
                sent += 16384
        except ConnectionError:
            pass
        assert sent < 50 * 2**20
        try:
            answer = line.recv(4096)
        except ConnectionError:
            answer = b""  # lost with what was still under way
    assert answer in (b"", head.REFUSAL)


def test_a_head_that_takes_its_time_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_S", 0.05)
    assert talk(port, b"GET / HTTP/1.1\r\nHost") == b""
    assert talk(port) == b""
    kept = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    assert talk(port, kept + b"GET / HT").startswith(b"HTTP/1.1 200")
