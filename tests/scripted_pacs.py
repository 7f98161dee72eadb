"""A PACS that follows a script: raw answers over a real socket, with every way to break off."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from app.pacs.peer import Peer

End = Literal["", "close", "stall", "trickle"]


@dataclass(frozen=True)
class Answer:
    """What one request gets. `sent` bytes of the body are sent, then `end` happens: nothing, the connection is
    closed, nothing more comes, or a byte now and then."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None
    end: End = ""
    framed: bool = True  # by Content-Length; else by the end of the connection


SILENCE = Answer(status=0)  # not even a status line


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """An answer in JSON."""
    kind = {"Content-Type": "application/dicom+json"}
    return Answer(status, json.dumps(value).encode(), kind | {k.replace("_", "-"): v for k, v in headers.items()})


def as_parts(*contents: bytes, sent: int | None = None, end: End = "", framed: bool = True) -> Answer:
    """An answer of DICOM parts."""
    head = b"--B\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(head + data + b"\r\n" for data in contents) + b"--B--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=B'
    return Answer(200, body, {"Content-Type": kind}, sent, end, framed)


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes


class ScriptedPacs:
    """Gives its answers one after the other, the last one again and again; remembers the requests."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[Seen] = []
        self._answers = list(answers)
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=2**26)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def peer(self, **settings: Any) -> Peer:
        """The settings that reach it, with short times."""
        scheme = "https" if self._tls else "http"
        url = f"{scheme}://127.0.0.1:{self.port}/dicom-web"
        return Peer(**({"url": url, "retries": 0, "retry_s": 0.001} | settings))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = lines[0].split(" ")
        url = urlsplit(target)
        self.seen.append(Seen(method, url.path, parse_qsl(url.query), headers, body))
        if answer.status:
            writer.write(_bytes_of(answer))
            await writer.drain()
        return await self._end(answer, writer)

    async def _end(self, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        while answer.end == "trickle":
            await asyncio.sleep(0.01)
            writer.write(b"x")
            await writer.drain()
        if answer.end == "stall" or not answer.status:
            await asyncio.Event().wait()
        return answer.framed and answer.end != "close"


def _bytes_of(answer: Answer) -> bytes:
    length = {"Content-Length": str(len(answer.body))} if answer.framed else {"Connection": "close"}
    headers = "".join(f"{name}: {value}\r\n" for name, value in (length | dict(answer.headers)).items())
    return f"HTTP/1.1 {answer.status} Said\r\n{headers}\r\n".encode() + answer.body[: answer.sent]


def dicom_json(**elements: Any) -> dict[str, Any]:
    """Elements of the DICOM JSON model; keys are `t` and the tag, values are lists."""
    return {name[1:]: {"vr": "UN", "Value": value} for name, value in elements.items()}


def instance(uid: str) -> dict[str, Any]:
    """A row of a list of instances."""
    return dicom_json(t00080016=["1.2.840.10008.5.1.4.1.1.2"], t00080018=[uid])


def stow(stored: Sequence[str] = (), failed: Mapping[str, int | None] | None = None) -> dict[str, Any]:
    """The answer to storing."""
    reasons = (
        dicom_json(t00081155=[uid], **({} if code is None else {"t00081197": [code]}))
        for uid, code in (failed or {}).items()
    )
    return dicom_json(t00081199=[dicom_json(t00081155=[uid]) for uid in stored], t00081198=list(reasons))
