"""Cuts a frame into tiles of one listed shape and joins the results without seams.

The tile shape follows from the frame's size alone. Every tile starts at a multiple of the network's
own grid, so a network that works on such a grid sees the same grid in every tile. Beyond the frame's
right and bottom edge a tile holds the frame's reflection, repeated where the frame is smaller than
the tile. A kept part lies at least `halo` pixels from every side of its tile that is no frame edge;
at the right and bottom a tile either ends with the frame or reaches `halo` pixels past it. For
anything that sees at most `halo` pixels far, and reflects at borders, tiled equals untiled exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in frame pixels: it starts at `start` and gives [first, last) to the result."""

    start: int
    first: int
    last: int


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of a frame lie; tiles run along the columns first."""

    rows: int
    columns: int
    shape: tuple[int, int]  # rows and columns of every tile
    row_spans: tuple[Span, ...]
    column_spans: tuple[Span, ...]

    @property
    def spans(self) -> list[tuple[Span, Span]]:
        """Row span and column span of each tile, in the order of `cut` and `merge`."""
        return [(row, column) for row in self.row_spans for column in self.column_spans]

    @property
    def count(self) -> int:
        return len(self.row_spans) * len(self.column_spans)


def plan_tiles(rows: int, columns: int, shapes: Sequence[tuple[int, int]], multiple: int, halo: int) -> TilePlan:
    """Plans the tiles of a frame of `rows` x `columns`.

    The smallest listed shape that holds the frame whole is taken; where none does, the one whose
    tiles have the fewest pixels in sum (then the fewest tiles, then the earliest in the list).
    Raises ValueError for an empty frame, or where no listed shape leaves room between two halos.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a frame of {rows} x {columns} pixels cannot be tiled")
    whole = [shape for shape in shapes if shape[0] >= rows and shape[1] >= columns]
    plans = [_plan(rows, columns, shape, multiple, halo) for shape in whole or shapes]
    possible = [plan for plan in plans if plan.count]
    if not possible:
        raise ValueError(f"tiles {list(shapes)} leave no room between halos of {halo} pixels on a grid of {multiple}")
    return min(possible, key=lambda plan: (plan.count * plan.shape[0] * plan.shape[1], plan.count))


def cut(array: Array, plan: TilePlan) -> list[Array]:
    """Cuts (..., rows, columns) into contiguous tiles (..., tile rows, tile columns), in the plan's order."""
    if array.shape[-2:] != (plan.rows, plan.columns):
        raise ValueError(f"a plan for {plan.rows} x {plan.columns} does not fit {array.shape[-2:]}")
    row_indices = [_reflect(span.start, plan.shape[0], plan.rows) for span in plan.row_spans]
    column_indices = [_reflect(span.start, plan.shape[1], plan.columns) for span in plan.column_spans]
    bands = [_take(array, indices, -2) for indices in row_indices]
    return [np.ascontiguousarray(_take(band, indices, -1)) for band in bands for indices in column_indices]


def merge(tiles: Sequence[Array], plan: TilePlan, scale: int = 1) -> Array:
    """Joins tiles (..., scale * tile rows, scale * tile columns) to (..., scale * rows, scale * columns)."""
    expected = (plan.shape[0] * scale, plan.shape[1] * scale)
    if len(tiles) != plan.count or any(tile.shape[-2:] != expected for tile in tiles):
        raise ValueError(f"expected {plan.count} tiles of {expected}, got {[tile.shape for tile in tiles]}")
    merged = np.empty((*tiles[0].shape[:-2], plan.rows * scale, plan.columns * scale), tiles[0].dtype)
    for tile, (row, column) in zip(tiles, plan.spans, strict=True):
        merged[..., _kept(row, 0, scale), _kept(column, 0, scale)] = tile[
            ..., _kept(row, row.start, scale), _kept(column, column.start, scale)
        ]
    return merged


def _plan(rows: int, columns: int, shape: tuple[int, int], multiple: int, halo: int) -> TilePlan:
    return TilePlan(
        rows, columns, shape, _plan_axis(rows, shape[0], multiple, halo), _plan_axis(columns, shape[1], multiple, halo)
    )


def _plan_axis(size: int, tile: int, multiple: int, halo: int) -> tuple[Span, ...]:
    """Spans of tiles of length `tile` over `size` pixels; empty where two halos leave no room."""
    if size <= tile:
        return (Span(0, 0, size),)
    stride = (tile - 2 * halo) // multiple * multiple
    if stride < 1:
        return ()
    end = size if (size - tile) % multiple == 0 else size + halo
    steps = -(-(end - tile) // multiple)  # the last tile starts at this many grid steps
    gaps = -(-steps * multiple // stride)
    starts = [steps * index // gaps * multiple for index in range(gaps + 1)]
    seams = [(start + before + tile) // 2 for before, start in pairwise(starts)]
    return tuple(map(Span, starts, [0, *seams], [*seams, size]))


def _reflect(start: int, length: int, size: int) -> Array:
    """Frame positions of `length` tile positions from `start`, mirrored at the first and last pixel."""
    period = max(2 * (size - 1), 1)
    folded = np.arange(start, start + length) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(length, np.intp)


def _take(array: Array, indices: Array, axis: int) -> Array:
    """`array.take`, but a view where the indices are consecutive."""
    if indices[-1] - indices[0] == len(indices) - 1 and (np.diff(indices) == 1).all():
        along = slice(int(indices[0]), int(indices[-1]) + 1)
        return array[..., along, :] if axis == -2 else array[..., along]
    return array.take(indices, axis)


def _kept(span: Span, origin: int, scale: int) -> slice:
    return slice((span.first - origin) * scale, (span.last - origin) * scale)
