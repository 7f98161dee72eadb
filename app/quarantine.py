"""Inputs that have ended workers, by digest, so that none of them is run again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from app.offload import offload
from app.work import WorkItem

MOST = 1024  # digests; the oldest is forgotten


class Quarantine:
    """Work items that are not run any more. While there is none, asking costs nothing.

    Large items are looked at beside the event loop.
    """

    def __init__(self) -> None:
        self._digests: OrderedDict[str, None] = OrderedDict()

    async def add(self, item: WorkItem) -> None:
        """Refuses the item, and every one equal to it, from now on."""
        self._digests[await offload(item.usage.pixels, digest_of, item)] = None
        if len(self._digests) > MOST:
            self._digests.popitem(last=False)

    async def holds(self, item: WorkItem) -> bool:
        return bool(self._digests) and await offload(item.usage.pixels, digest_of, item) in self._digests


def digest_of(item: WorkItem) -> str:
    """SHA-256 of what a worker is given: model, graph, precision and arrays."""
    digest = hashlib.sha256(repr(item.key).encode())
    for name in sorted(item.arrays):
        digest.update(np.ascontiguousarray(item.arrays[name]).data)
    return digest.hexdigest()
