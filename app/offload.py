"""Work beside the event loop, where it is long enough to be worth handing over, and work that is not left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
SMALL = 256 * 256  # pixels whose work takes about as long as a thread takes to be woken


async def offload(pixels: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function that works on so many pixels: at once where they are few, else in the thread pool."""
    if pixels <= SMALL:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, which runs to its end: a caller that is cancelled meanwhile is so after that.

    For what a thread does to files: cancelling alone would leave the thread at work on what is deleted, or handed on.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # else asyncio reports it as unseen
        raise
