"""A file as an answer, whole or in parts (RFC 9110, section 14)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from app.errors import RangeRefused

REFUSED = (400, 416)  # what the framework answers to ranges: malformed, and outside of the file


class Download(FileResponse):
    """Parts that the file does not have are refused with RangeRefused; units other than bytes are ignored."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not in_parts(Headers(scope=scope)):
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}

        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in REFUSED:
                raise RangeRefused(int(self.headers["content-length"]))
            await send(message)

        await super().__call__(scope, receive, checked)


def in_parts(headers: Headers) -> bool:
    """Whether a request asks for parts of a file, in a unit that is known here."""
    return headers.get("range", "").strip().lower().startswith("bytes=")
