"""Pixel work beside the event loop, where it is long enough to be worth handing over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
SMALL = 256 * 256  # pixels whose work takes about as long as a thread takes to be woken


async def offload(pixels: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function that works on so many pixels: at once where they are few, else in the thread pool."""
    if pixels <= SMALL:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
