"""Inputs that have ended workers, by digest, so that none of them is run again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from app.work import WorkItem

MOST = 1024  # digests; the oldest is forgotten


class Quarantine:
    """Work items that are not run any more. While there is none, asking costs nothing."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, None] = OrderedDict()

    def add(self, item: WorkItem) -> None:
        """Refuses the item, and every one equal to it, from now on."""
        self._digests[digest_of(item)] = None
        if len(self._digests) > MOST:
            self._digests.popitem(last=False)

    def holds(self, item: WorkItem) -> bool:
        return bool(self._digests) and digest_of(item) in self._digests


def digest_of(item: WorkItem) -> str:
    """SHA-256 of what a worker is given: model, graph, precision and arrays."""
    digest = hashlib.sha256(repr(item.key).encode())
    for name in sorted(item.arrays):
        digest.update(item.arrays[name].tobytes())
    return digest.hexdigest()
