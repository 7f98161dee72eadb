"""Routes that take a small JSON body, read here: the framework would read on without a limit, and wait for ever."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.body import declared_bytes, limited
from app.errors import Cancelled

JSON_BYTES = 64 * 1024


class SmallBody(APIRoute):
    """Raises ImageTooLarge, UploadStalled and Cancelled before the body is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(await _read(request))

        return bounded if self.body_field else handle


async def _read(request: Request) -> Request:
    """The same request, its body in memory."""
    declared_bytes(request, JSON_BYTES, 0)
    stall_s: float = request.app.state.service.settings.stall_s
    try:
        data = b"".join([chunk async for chunk in limited(request, JSON_BYTES, stall_s)])
    except ClientDisconnect as error:
        raise Cancelled("the caller went away while sending") from error
    rest: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive() -> Message:
        return rest.pop() if rest else await request.receive()

    return Request(request.scope, receive)
