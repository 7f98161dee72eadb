"""How many images the service holds in memory at one time, counted before a body is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import QueueFull


class Gate:
    """Lets requests in while their number and the sum of their bodies stay within bounds."""

    def __init__(self, requests: int, bytes: int) -> None:
        self.requests = 0
        self.bytes = 0
        self._most_requests = requests
        self._most_bytes = bytes

    @contextmanager
    def enter(self, bytes: int, refuse: Callable[[str], QueueFull]) -> Iterator[None]:
        """Holds room for one request with a body of up to `bytes`; raises what `refuse` makes of a reason."""
        if self.requests + 1 > self._most_requests:
            raise refuse("requests")
        if self.bytes + bytes > self._most_bytes:
            raise refuse("request bytes")
        self.requests += 1
        self.bytes += bytes
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= bytes
