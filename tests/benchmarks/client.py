"""A light HTTP/1.1 client: it shares the machine with the server that it measures, and tells a request that was
refused (no connection) from one that was lost (sent, and never answered whole)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

IDLE_S = 2.0  # a connection that rested longer is opened anew: the server may be closing it
CONNECT_S, ANSWER_S = 30.0, 600.0


@dataclass(frozen=True)
class Request:
    """What is sent: always a POST."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What became of a request. Times are of `time.monotonic()`."""

    request: Request
    start: float
    end: float
    outcome: str = "answered"  # or "refused", "lost"
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""
    reason: str = ""
    sent: float = 0.0  # later than `start` where this process had no time when the request was due

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def seconds_sent(self) -> float:
        """From sending, so that a client without time is not held against the server."""
        return self.end - self.sent

    @property
    def kind(self) -> str:
        """Status of an answer, else what became of the request."""
        return str(self.status) if self.outcome == "answered" else self.outcome


class Caller:
    """One connection, used again for the next request unless `fresh`; one request at a time."""

    def __init__(self, port: int, fresh: bool = False) -> None:
        self._port = port
        self._fresh = fresh
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def post(self, request: Request, start: float | None = None) -> Reply:
        """Sends and waits; never raises for what the server does. `start`: when the request was due."""
        sent = time.monotonic()
        begun = sent if start is None else start
        try:
            reader, writer = await self._connect()
        except (OSError, TimeoutError) as error:
            return Reply(request, begun, time.monotonic(), "refused", reason=repr(error))
        try:
            writer.write(self._head(request))
            writer.write(request.body)
            status, headers, body = await asyncio.wait_for(_read(reader), ANSWER_S)
        except (OSError, EOFError, TimeoutError, ValueError, IndexError) as error:
            self.close()
            return Reply(request, begun, time.monotonic(), "lost", reason=repr(error))
        self._used = time.monotonic()
        if self._fresh or headers.get("connection") == "close":
            self.close()
        return Reply(request, begun, time.monotonic(), "answered", status, headers, body, sent=sent)

    async def send(self, request: Request) -> None:
        """Sends alone; `close` is how to hang up."""
        _, writer = await self._connect()
        writer.write(self._head(request) + request.body)
        await writer.drain()

    def close(self) -> None:
        """Closes the connection at once; the next request opens another."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and time.monotonic() - self._used > IDLE_S:
            self.close()
        if self._streams is None:
            opening = asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
            self._streams = await asyncio.wait_for(opening, CONNECT_S)
        return self._streams

    def _head(self, request: Request) -> bytes:
        fields = {"Host": "127.0.0.1", "Content-Length": str(len(request.body)), **request.headers}
        fields |= {"Connection": "close"} if self._fresh else {}
        lines = [f"POST {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer, which must tell its length."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(first.split()[1]), headers, body


async def closed_loop(port: int, requests: Iterable[Request], callers: int, fresh: bool = False) -> list[Reply]:
    """Sends all requests, each of `callers` callers one after another; the replies in the order they ended."""
    waiting, replies = iter(requests), list[Reply]()

    async def call() -> None:
        caller = Caller(port, fresh)
        for request in waiting:
            reply = await caller.post(request)
            replies.append(reply)
            if reply.outcome == "refused":
                await asyncio.sleep(0.05)
        caller.close()

    await asyncio.gather(*(call() for _ in range(callers)))
    return replies


def repeat_until(ended: asyncio.Event, request: Request) -> Iterator[Request]:
    """The request again and again, for loops that something else ends."""
    while not ended.is_set():
        yield request


async def open_loop(port: int, requests: Iterable[Request], rate: float, seed: int = 1) -> list[Reply]:
    """Sends requests at random (Poisson) times, `rate` a second, whatever the server does; seconds count from
    the time a request was due."""
    random_of, idle, tasks = random.Random(seed), list[Caller](), list[asyncio.Task[Reply]]()
    due = time.monotonic()

    async def call(request: Request, due: float) -> Reply:
        caller = idle.pop() if idle else Caller(port)
        reply = await caller.post(request, due)
        idle.append(caller)
        return reply

    for request in requests:
        due += random_of.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(call(request, due)))
    replies = await asyncio.gather(*tasks)
    for caller in idle:
        caller.close()
    return replies
