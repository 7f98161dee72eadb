"""Work items, and the bounded queue that batches are cut from.

The queue is plain data: no clock, no event loop, no process. `app.batching.Engine` drives it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Priority(IntEnum):
    """Lower goes first; within one class the oldest goes first."""

    INTERACTIVE = 0
    ROUTINE = 1
    BULK = 2


class Cancellation:
    """Shared by all items of one request: `cancel()` withdraws them together.

    Belongs to the event loop's thread. Listeners are called once, at once when it is already
    cancelled.
    """

    def __init__(self) -> None:
        self._listeners: dict[int, Callable[[], None]] = {}
        self._next = 0
        self.cancelled = False

    def cancel(self) -> None:
        """Withdraws every item that carries this; a second call does nothing."""
        self.cancelled = True
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            listener()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` on cancellation; returns what ends the subscription."""
        if self.cancelled:
            listener()
            return lambda: None
        self._next += 1
        key = self._next
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None


@dataclass(frozen=True)
class Answer:
    """What came back for one item, and how."""

    arrays: dict[str, Array]  # the graph's outputs, leading dimension 1
    backend: str  # "onnx", "openvino" or "torchscript"
    device: str  # "cpu", "cuda:0", ...
    precision: str
    queue_s: float  # from acceptance to the start of the run that answered
    run_s: float  # of the whole batch, in the worker
    batch_items: int  # items that shared the run, this one included
    attempts: int  # 1, or 2 after a lost worker or a failed batch


@dataclass(frozen=True, eq=False)
class WorkItem:
    """One run of one graph: a tile, or a whole frame for `estimate`.

    `arrays` are the graph's inputs by name, float32, each with leading dimension 1. `deadline` is
    in seconds of `time.monotonic()`. Raises ValueError on arrays that could not be batched.
    """

    digest: str  # of the bundle
    graph: str  # "estimate" or "restore"
    arrays: Mapping[str, Array]
    precision: str = "fp32"  # "fp32" (exact) or "bf16" (fast)
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)
    admission: Admission | None = None  # of the request this is part of; None: the item asks for itself

    def __post_init__(self) -> None:
        if not self.arrays or any(a.ndim < 1 or a.shape[0] != 1 for a in self.arrays.values()):
            raise ValueError("a work item needs arrays whose leading dimension is 1")

    @property
    def pixels(self) -> int:
        """Elements of the largest array: what the work costs."""
        return max(int(array.size) for array in self.arrays.values())

    @property
    def bytes(self) -> int:
        """Memory of the inputs."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    @property
    def key(self) -> Hashable:
        """Items of one key may share a run: same bundle, graph, precision, shapes and dtypes."""
        shapes = tuple(sorted((name, a.shape, a.dtype.str) for name, a in self.arrays.items()))
        return (self.digest, self.graph, self.precision, shapes)
