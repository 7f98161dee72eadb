"""Tells those who wait that something has changed, so that they look again."""

from __future__ import annotations

import asyncio


class Change:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wakes all who wait now."""
        self._event.set()

    async def wait(self) -> None:
        """Returns after the next `tell`. Nothing is missed by who looked just before, without an await between."""
        self._event.clear()
        await self._event.wait()
