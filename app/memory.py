"""Gives freed memory back to the system, so that a service is as large after a month as after an hour."""

from __future__ import annotations

import ctypes
import sys

# Left alone, glibc maps ever fewer blocks one by one: each large one that is freed raises the limit, up to 32 MiB.
# Images then come from the heaps of the threads, where one small block that lives on keeps all that is free below it.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
MAPPED_BYTES = 512 * 1024  # blocks from here on are mapped one by one; smaller ones cost less from a heap
TRIMMED_BYTES = 2 * 1024**2  # free at the end of a heap


def return_freed() -> bool:
    """Sets this process's allocator; gives whether it can be set (on Linux with glibc, so far)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(_M_TRIM_THRESHOLD, TRIMMED_BYTES))
