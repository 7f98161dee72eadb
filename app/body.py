"""Takes the one image out of a request: a multipart field `file`, or the raw body.

A body is counted while it streams in and stays in memory; nothing of it is written to disk.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from app.errors import Cancelled, InvalidBody
from app.tracing import span
from models.errors import ImageTooLarge

FIELD = "file"


@dataclass(frozen=True)
class Upload:
    """An image file as it was sent."""

    data: bytes
    hint: str | None  # the file's name or its declared media type; never logged


class MemoryParser(MultiPartParser):
    """Keeps file parts in memory; the limit on the stream bounds them."""

    spool_max_size = 2**62


def declared_bytes(request: Request, limit: int) -> int:
    """Length of the body by its header, `limit` where it has none. Raises ImageTooLarge above the limit."""
    text = request.headers.get("content-length", "")
    length = int(text) if text.isdigit() else limit
    if length > limit:
        raise _too_large(limit)
    return length


async def read_upload(request: Request, limit: int) -> Upload:
    """Reads the image. Raises InvalidBody, ImageTooLarge as soon as the limit is passed, and
    Cancelled where the caller goes while sending."""
    declared = request.headers.get("content-type", "")
    try:
        with span("receive"):
            if declared.split(";")[0].strip().lower() == "multipart/form-data":
                return await _read_form(request, limit)
            data = b"".join([chunk async for chunk in _limited(request, limit)])
    except ClientDisconnect as exc:
        raise Cancelled("the caller went away while sending") from exc
    if not data:
        raise InvalidBody(f"the body is empty: send the image itself, or a form with the field {FIELD!r}")
    return Upload(data, declared or None)


async def _read_form(request: Request, limit: int) -> Upload:
    parser = MemoryParser(request.headers, _limited(request, limit), max_files=1, max_fields=1)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as exc:
        raise InvalidBody(f"the form is malformed, or has more than one field {FIELD!r}") from exc
    try:
        (name, part), *others = form.multi_items() or [("", "")]
        if others or name != FIELD or not isinstance(part, UploadFile):
            raise InvalidBody(f"a form needs one file field {FIELD!r} and no other; options go into the query")
        data = await part.read()
    finally:
        await form.close()
    if not data:
        raise InvalidBody(f"the field {FIELD!r} is empty")
    return Upload(data, part.filename or part.content_type)


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, as long as their sum is within the limit."""
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > limit:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"the body is larger than the limit of {limit} bytes")
