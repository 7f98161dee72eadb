"""One unit of work, and its answer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from app.admission import Admission, Usage

Array = np.ndarray[Any, Any]


class Priority(IntEnum):
    """Lower goes first; within one class the oldest goes first. Each class is as if it had come later than
    the one above it (`EngineConfig.ageing_s`), so that none waits for ever."""

    INTERACTIVE = 0
    ROUTINE = 1
    BULK = 2


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
    admission: Admission | None = None  # of the request this is part of; None: the item asks for itself

    def __post_init__(self) -> None:
        if not self.arrays or any(a.ndim < 1 or a.shape[0] != 1 for a in self.arrays.values()):
            raise ValueError("a work item needs arrays whose leading dimension is 1")

    @property
    def usage(self) -> Usage:
        """Its share of the queue; pixels are the elements of the largest array."""
        arrays = self.arrays.values()
        return Usage(1, max(int(a.size) for a in arrays), sum(int(a.nbytes) for a in arrays))

    @property
    def key(self) -> Hashable:
        """Items of one key may share a run: same bundle, graph, precision, shapes and dtypes."""
        shapes = tuple(sorted((name, a.shape, a.dtype.str) for name, a in self.arrays.items()))
        return (self.digest, self.graph, self.precision, shapes)


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
