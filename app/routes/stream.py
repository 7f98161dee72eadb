"""Server-sent events of a job: as it is now, after each change, and a sign of life in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from app.errors import JobNotFound

KEEP_ALIVE_S = 15.0  # proxies close streams that are silent for longer
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

T = TypeVar("T")


def follow(states: AsyncIterator[T], tell: Callable[[T], tuple[int, str, BaseModel]]) -> StreamingResponse:
    """One event for each new revision. `tell` gives revision, name and document of a state; a job that is deleted
    meanwhile ends the stream."""
    return StreamingResponse(_events(states, tell), headers=HEADERS, media_type="text/event-stream")


async def _events(states: AsyncIterator[T], tell: Callable[[T], tuple[int, str, BaseModel]]) -> AsyncIterator[str]:
    seen = None
    try:
        async for state in states:
            revision, name, document = tell(state)
            if revision == seen:
                yield ": still here\n\n"
            else:
                seen = revision
                yield f"id: {revision}\nevent: {name}\ndata: {document.model_dump_json()}\n\n"
    except JobNotFound:
        return
