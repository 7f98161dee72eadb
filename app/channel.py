"""Messages between two processes whose arrays travel through memory that both have mapped.

The pipe carries a message and says where each array lies. Each side writes into a region of its own, so nothing is
pickled, and an array is copied once. A region is anonymous (memfd on Linux: it takes nothing of a container's
/dev/shm) and goes with the last process that maps it; one that is too small is replaced, and the new one's descriptor
goes through the pipe.

The seam for another transport: whatever sends and receives messages with arrays can replace `Channel`.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from mmap import mmap
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
ALIGNMENT = 64  # bytes; what vector instructions like
SMALLEST = 1 << 20
KEPT = 64 << 20  # a larger region is given back once less is needed


class Channel:
    """One end. Both sides take turns: what was received is read before anything is sent."""

    def __init__(self, connection: Connection) -> None:
        self._pipe = connection
        self._ours: mmap | None = None
        self._theirs: mmap | None = None

    def send(self, message: Any, items: Sequence[Arrays] = ()) -> None:
        """Writes a message and the items' arrays, each name's stacked along the first axis.

        Raises OSError where the other side has gone.
        """
        stacks = {name: [np.asarray(item[name]) for item in items] for name in items[0]} if items else {}
        layout, size = [], 0
        for name, parts in stacks.items():
            shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
            layout.append((name, parts[0].dtype.str, shape, size))
            size = _aligned(size + sum(part.nbytes for part in parts))
        descriptor = self._make_room(size)
        try:
            for (_, dtype, shape, offset), parts in zip(layout, stacks.values(), strict=True):
                self._write(dtype, shape, offset, parts)
            replaced = None if descriptor is None else len(self._ours or b"")
            self._pipe.send_bytes(pickle.dumps((message, layout, replaced)))
            if descriptor is not None:
                reduction.send_handle(self._pipe, descriptor, None)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def receive(self) -> tuple[Any, dict[str, Array]]:
        """A message and its arrays, which are views: they hold until this side sends.

        Raises EOFError or OSError where the other side has gone.
        """
        message, layout, replaced = pickle.loads(self._pipe.recv_bytes())
        if replaced is not None:
            descriptor = reduction.recv_handle(self._pipe)
            try:
                self._theirs = mmap(descriptor, replaced)
            finally:
                os.close(descriptor)
        return message, {name: _view(self._theirs, dtype, shape, offset) for name, dtype, shape, offset in layout}

    def _make_room(self, size: int) -> int | None:
        """Has a region of that many bytes at least; gives the descriptor of a new one."""
        capacity = len(self._ours) if self._ours is not None else 0
        if size <= capacity and not (capacity > KEPT >= size):
            return None
        capacity = max(SMALLEST, 1 << (size - 1).bit_length()) if size <= KEPT else size
        descriptor = _anonymous_file(capacity)
        try:
            self._ours = mmap(descriptor, capacity)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _write(self, dtype: str, shape: tuple[int, ...], offset: int, parts: list[Array]) -> None:
        whole, start = _view(self._ours, dtype, shape, offset), 0
        for part in parts:
            whole[start : start + part.shape[0]] = part
            start += part.shape[0]


def split(arrays: Arrays, count: int) -> list[dict[str, Array]]:
    """Copies of each of `count` items out of stacked arrays, leading dimension 1."""
    return [{name: array[index : index + 1].copy() for name, array in arrays.items()} for index in range(count)]


def _view(region: mmap | None, dtype: str, shape: tuple[int, ...], offset: int) -> Array:
    count = int(np.prod(shape))
    if not count:
        return np.empty(shape, dtype)
    if region is None:
        raise OSError("arrays were announced, and no memory that holds them has come")
    return np.frombuffer(region, dtype, count, offset).reshape(shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _anonymous_file(size: int) -> int:
    """Descriptor of memory without a name; where the system has none, of a file that was removed already."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("medrestore")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
