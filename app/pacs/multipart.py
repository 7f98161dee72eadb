"""`multipart/related` (RFC 2387, RFC 2046 5.1; PS3.18 8.6.1.2): a reader for streams, a writer of files.

A part is told as complete only when the delimiter after it has come whole; a body that ends before its
closing delimiter is truncated, whatever came before.
"""

from __future__ import annotations

import asyncio
import errno
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from enum import Enum
from io import FileIO
from pathlib import Path

from app.pacs.errors import PacsMalformed, PacsUnavailable

HEADER_BYTES = 16 * 1024
MARGIN_BYTES = 64 * 1024  # preamble, and epilogue
PADDING_BYTES = 64  # blanks behind a delimiter
READ_BYTES = 1024**2
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


@dataclass(frozen=True)
class Head:
    """A part begins."""

    headers: Mapping[str, str]  # names in lower case


class End(Enum):
    """A part is complete."""

    END = "end"


Event = Head | bytes | End  # bytes: more of the part's content


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart/related body. Raises PacsMalformed for any other media type."""
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_type() != "multipart/related":
        raise PacsMalformed("media-type", "no multipart/related body")
    boundary = message.get_boundary()
    if boundary is None or not BOUNDARY.fullmatch(boundary):
        raise PacsMalformed("multipart", "no boundary, or not a valid one")
    return boundary.encode()


class Reader:
    """Takes a body piece by piece and tells what is in it; holds one header or one piece at most.

    A part that tells its Content-Length is taken by it, so that it may hold anything; the others end at
    the next delimiter.
    """

    def __init__(self, boundary: bytes, part_bytes: int, header_bytes: int = HEADER_BYTES) -> None:
        self.closed = False  # the closing delimiter has come
        self._delimiter = b"\r\n--" + boundary
        self._part_bytes = part_bytes
        self._header_bytes = header_bytes
        self._buffer = bytearray(b"\r\n")  # so that a delimiter at the very beginning is like any other
        self._events: list[Event] = []
        self._step = self._preamble  # each takes from the buffer; False: it needs more
        self._outside = 0  # bytes before the first part and behind the last
        self._inside = 0  # bytes of this part
        self._left = 0  # bytes to come of a part that told its length

    def feed(self, data: bytes) -> list[Event]:
        """What `data` adds. Raises PacsMalformed."""
        self._buffer += data
        self._events = []
        while self._step():
            pass
        return self._events

    def finish(self) -> None:
        """The body has ended. Raises PacsUnavailable where it is truncated."""
        if not self.closed:
            raise PacsUnavailable("dropped")

    def _preamble(self) -> bool:
        skipped, found = self._to_delimiter()
        self._skip(len(skipped))
        return found

    def _head(self) -> bool:
        bare = self._buffer.startswith(b"\r\n")  # a part without headers
        end = 0 if bare else self._buffer.find(b"\r\n\r\n")
        if (len(self._buffer) if end < 0 else end) > self._header_bytes:
            raise PacsMalformed("multipart", f"the header of a part is longer than {self._header_bytes} bytes")
        if end < 0:
            return False
        headers = _headers(bytes(self._buffer[:end]))
        del self._buffer[: end + (2 if bare else 4)]
        self._events.append(Head(headers))
        self._begin(headers.get("content-length"))
        return True

    def _begin(self, length: str | None) -> None:
        self._inside = 0
        self._step = self._content
        if length is not None:
            if not re.fullmatch(r"[0-9]{1,15}", length):
                raise PacsMalformed("multipart", "the Content-Length of a part is no number")
            self._left = int(length)
            self._grow(self._left)
            self._step = self._sized

    def _sized(self) -> bool:
        data = bytes(self._buffer[: self._left])
        del self._buffer[: len(data)]
        self._left -= len(data)
        if data:
            self._events.append(data)
        if self._left == 0:
            self._step = self._sized_end
        return self._left == 0

    def _sized_end(self) -> bool:
        more, found = self._to_delimiter()
        if more:
            raise PacsMalformed("multipart", "a part is longer than its Content-Length")
        if found:
            self._events.append(End.END)
        return found

    def _content(self) -> bool:
        data, found = self._to_delimiter()
        self._grow(len(data))
        if data:
            self._events.append(data)
        if found:
            self._events.append(End.END)
        return found

    def _epilogue(self) -> bool:
        self._skip(len(self._buffer))
        self._buffer.clear()
        return False

    def _skip(self, count: int) -> None:
        self._outside += count
        if self._outside > MARGIN_BYTES:
            raise PacsMalformed("multipart", f"more than {MARGIN_BYTES} bytes outside the parts")

    def _grow(self, count: int) -> None:
        self._inside += count
        if self._inside > self._part_bytes:
            raise PacsMalformed("too-large", f"a part is longer than {self._part_bytes} bytes")

    def _to_delimiter(self) -> tuple[bytes, bool]:
        """Takes what is surely no delimiter, and the delimiter itself where it is there whole."""
        at = self._buffer.find(self._delimiter)
        while at >= 0:
            end = at + len(self._delimiter)
            tail = bytes(self._buffer[end : end + PADDING_BYTES + 2])
            if match := re.match(rb"--|[ \t]*\r\n", tail):
                return self._pass(at, end + match.end(), closing=match[0] == b"--"), True
            if len(tail) < PADDING_BYTES + 2 and re.fullmatch(rb"-|[ \t]*\r?", tail):
                return self._take(at), False  # more may make a delimiter of it
            at = self._buffer.find(self._delimiter, at + 1)
        return self._take(max(0, len(self._buffer) - len(self._delimiter) + 1)), False

    def _pass(self, at: int, end: int, closing: bool) -> bytes:
        data = self._take(at)
        del self._buffer[: end - at]
        self._step = self._epilogue if closing else self._head
        self.closed = closing
        return data

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


def _headers(block: bytes) -> dict[str, str]:
    """The headers of a part, names in lower case. Raises PacsMalformed."""
    headers = {}
    for line in block.split(b"\r\n") if block else []:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name.strip():
            raise PacsMalformed("multipart", "a line of a part's header has no name")
        headers[name.strip().lower()] = value.strip()
    return headers


class PartFile:
    """A file that appears under its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_name(path.name + ".part")
        self._file = self._unfinished.open("wb", buffering=0)
        self._held = bytearray()

    async def write(self, data: bytes) -> None:
        """Adds `data`, on the disk in pieces of READ_BYTES."""
        self._held += data
        if len(self._held) >= READ_BYTES:
            await self._flush()

    async def finish(self) -> Path:
        """Ends the file and gives it its name."""
        await self._flush()
        self._file.close()
        return self._unfinished.replace(self._path)

    def discard(self) -> None:
        """Removes what there is of it, unless it was finished."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    async def _flush(self) -> None:
        held, self._held = self._held, bytearray()
        await asyncio.to_thread(_write_all, self._file, held)


def _write_all(file: FileIO, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


async def save_parts(pieces: AsyncIterable[bytes], reader: Reader, paths: Iterator[Path]) -> AsyncGenerator[Path, None]:
    """Writes each part of a body to the next path and tells it when it is whole.

    Raises PacsMalformed, PacsUnavailable at a truncated body, and OSError where the disk fails; a part that
    was not told leaves no file.
    """
    file: PartFile | None = None
    try:
        async for piece in pieces:
            for event in reader.feed(piece):
                if isinstance(event, Head):
                    file = PartFile(_next(paths))
                elif isinstance(event, bytes):
                    assert file is not None
                    await file.write(event)
                else:
                    assert file is not None
                    yield await file.finish()
                    file = None
        reader.finish()
    finally:
        if file is not None:
            file.discard()


def _next(paths: Iterator[Path]) -> Path:
    for path in paths:
        return path
    raise PacsMalformed("multipart", "more parts than were asked for")


class Body:
    """DICOM files as one multipart/related body; every iteration begins anew, so that each attempt sends it whole."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._boundary = secrets.token_hex(16)
        self._files = [(path, path.stat().st_size) for path in files]

    @property
    def headers(self) -> dict[str, str]:
        """Content-Type and Content-Length."""
        kind = f'multipart/related; type="application/dicom"; boundary={self._boundary}'
        length = sum(len(self._head(size)) + size + 2 for _, size in self._files) + len(self._tail)
        return {"Content-Type": kind, "Content-Length": str(length)}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for path, size in self._files:
            yield self._head(size)
            with path.open("rb") as file:
                left = size
                while left:
                    data = await asyncio.to_thread(file.read, min(left, READ_BYTES))
                    if not data:
                        raise OSError(errno.EIO, "a file became shorter while it was sent")
                    left -= len(data)
                    yield data
            yield b"\r\n"
        yield self._tail

    def _head(self, size: int) -> bytes:
        return f"--{self._boundary}\r\nContent-Type: application/dicom\r\nContent-Length: {size}\r\n\r\n".encode()

    @property
    def _tail(self) -> bytes:
        return f"--{self._boundary}--\r\n".encode()
