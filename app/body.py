"""Takes the one image out of a request: a multipart field `file`, or the raw body.

A body is counted while it streams in. For an answer at once it stays in memory, and nothing of it is
written to disk; that of a job goes to the job's file as it comes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from app.errors import Cancelled, InvalidBody, UploadStalled
from app.tracing import span
from models.errors import ImageTooLarge

FIELD = "file"
EMPTY = f"the image is empty: send it as the body, or as the form field {FIELD!r}"


@dataclass(frozen=True)
class Upload:
    """An image file as it was sent."""

    data: bytes
    hint: str | None  # the file's name or its declared media type; never logged


class MemoryParser(MultiPartParser):
    """Keeps file parts in memory; the limit on the stream bounds them."""

    spool_max_size = 2**62


class FileParser(MultiPartParser):
    """Writes a file part to `target` as it comes."""

    target: BinaryIO

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if (part := self._current_part.file) is not None:
            part.file.close()  # the one that would go to memory, then to the temporary folder
            part.file = self.target


def declared_bytes(request: Request, limit: int, undeclared: int) -> int:
    """Length of the body by its header, `undeclared` where it has none. Raises ImageTooLarge above the limit."""
    text = request.headers.get("content-length", "")
    length = int(text) if text.isdigit() else undeclared
    if length > limit:
        raise _too_large(limit)
    return length


async def read_upload(request: Request, limit: int, stall_s: float) -> Upload:
    """Reads the image. Raises InvalidBody, ImageTooLarge as soon as the limit is passed, UploadStalled where nothing
    comes for `stall_s`, and Cancelled where the caller goes while sending."""
    try:
        with span("receive"):
            if _is_form(request):
                chunks = limited(request, limit, stall_s)
                part = await _parse(MemoryParser(request.headers, chunks, max_files=1, max_fields=1))
                data, hint = await part.read(), _hint(part)
                await part.close()
            else:
                data = b"".join([chunk async for chunk in limited(request, limit, stall_s)])
                hint = _declared(request)
    except ClientDisconnect as exc:
        raise Cancelled("the caller went away while sending") from exc
    if not data:
        raise InvalidBody(EMPTY)
    return Upload(data, hint)


async def save_upload(
    request: Request, limit: int, stall_s: float, path: Path, cover: Callable[[int], Awaitable[None]]
) -> str | None:
    """Writes the image into a file that is there and empty; gives the hint.

    `cover` is told, before anything of it is written, how many bytes have come in all. Raises what it raises, and
    what `read_upload` does.
    """
    with path.open("r+b") as file:
        try:
            if _is_form(request):
                chunks = limited(request, limit, stall_s, cover)
                parser = FileParser(request.headers, chunks, max_files=1, max_fields=1)
                parser.target = file
                hint = _hint(await _parse(parser))
            else:
                hint = _declared(request)
                async for chunk in limited(request, limit, stall_s, cover):
                    await asyncio.to_thread(file.write, chunk)
        except ClientDisconnect as exc:
            raise Cancelled("the caller went away while sending") from exc
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
        if not file.seek(0, os.SEEK_END):
            raise InvalidBody(EMPTY)
    return hint


def _declared(request: Request) -> str | None:
    return request.headers.get("content-type") or None


def _is_form(request: Request) -> bool:
    return (_declared(request) or "").split(";")[0].strip().lower() == "multipart/form-data"


def _hint(part: UploadFile) -> str | None:
    return part.filename or part.content_type


async def _parse(parser: MultiPartParser) -> UploadFile:
    """The form's one file. Raises InvalidBody."""
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as exc:
        raise InvalidBody(f"the form is malformed, or has more than one field {FIELD!r}") from exc
    (name, part), *others = form.multi_items() or [("", "")]
    if others or name != FIELD or not isinstance(part, UploadFile):
        await form.close()
        raise InvalidBody(f"a form needs one file field {FIELD!r} and no other; options go into the query")
    return part


async def limited(
    request: Request, limit: int, stall_s: float, cover: Callable[[int], Awaitable[None]] | None = None
) -> AsyncGenerator[bytes, None]:
    """The body's chunks, as long as they come, and their sum is within the limit.

    `cover` is told the sum before a chunk is given. Raises what it raises, ImageTooLarge, UploadStalled and
    ClientDisconnect.
    """
    count, chunks = 0, aiter(request.stream())
    while (chunk := await _next(chunks, stall_s)) is not None:
        count += len(chunk)
        if count > limit:
            raise _too_large(limit)
        if cover:
            await cover(count)
        yield chunk


async def _next(chunks: AsyncIterator[bytes], stall_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(stall_s):
            return await anext(chunks, None)
    except TimeoutError:
        raise UploadStalled(f"nothing of the body has come for {stall_s:g} s; send it again") from None


def _too_large(limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"the body is larger than the limit of {limit} bytes")
