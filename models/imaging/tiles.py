"""Cuts a frame into tiles of one listed shape and joins the results without seams.

Every tile starts at a multiple of the network's own grid, so a network that works on such a grid
sees the same grid in every tile. Beyond the frame's right and bottom edge a tile holds the frame's
reflection, repeated where the frame is smaller than the tile. A kept part lies at least `halo` pixels
from every side of its tile that is no border of the whole.

What counts as the whole follows from the frame's size and the listed shapes alone: the frame, with its
reflection to the right and below up to where the tiles end that would be taken if all shapes were
allowed. Whichever shapes are allowed, tiles then end at the same place or at least `halo` pixels past
the frame. For anything that sees at most `halo` pixels far, tiled equals whole exactly.
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


def plan_tiles(
    rows: int,
    columns: int,
    shapes: Sequence[tuple[int, int]],
    multiple: int,
    halo: int,
    allowed: Sequence[tuple[int, int]] | None = None,
) -> TilePlan:
    """Plans the tiles of a frame of `rows` x `columns`; `allowed` are those of the shapes that may be used (None: all).

    The smallest shape that holds the frame whole is taken; where none does, the one whose tiles have
    the fewest pixels in sum (then the fewest tiles, then the earliest in the list). Raises ValueError
    for an empty frame, or where no allowed shape can cover it with room between two halos.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a frame of {rows} x {columns} pixels cannot be tiled")
    ends = _ends(rows, columns, shapes, multiple, halo)
    plans = [_plan(rows, columns, shape, multiple, halo, ends) for shape in (shapes if allowed is None else allowed)]
    if not any(plan.count for plan in plans):
        tried = list(shapes if allowed is None else allowed)
        raise ValueError(
            f"tiles {tried} cannot cover it, or leave no room between halos of {halo} pixels on a grid of {multiple}"
        )
    return min((plan for plan in plans if plan.count), key=_cost)


def whole_plan(plan: TilePlan, multiple: int, halo: int) -> TilePlan:
    """One tile in place of the plan's: what a tiled answer must equal."""
    ends = (plan.row_spans[-1].start + plan.shape[0], plan.column_spans[-1].start + plan.shape[1])
    limits = (plan.rows + halo, plan.columns + halo)  # more is not seen, and may be more than memory holds
    sides = [min(end, -(-limit // multiple) * multiple) for end, limit in zip(ends, limits, strict=True)]
    spans = (Span(0, 0, plan.rows),), (Span(0, 0, plan.columns),)
    return TilePlan(plan.rows, plan.columns, (sides[0], sides[1]), *spans)


def cut(array: Array, plan: TilePlan) -> list[Array]:
    """Cuts (..., rows, columns) into contiguous tiles (..., tile rows, tile columns), in the plan's order."""
    return [cut_tile(array, plan, *spans) for spans in plan.spans]


def cut_tile(array: Array, plan: TilePlan, row: Span, column: Span) -> Array:
    """One tile (..., tile rows, tile columns) of (..., rows, columns), contiguous."""
    if array.shape[-2:] != (plan.rows, plan.columns):
        raise ValueError(f"a plan for {plan.rows} x {plan.columns} does not fit {array.shape[-2:]}")
    band = _take(array, _reflect(row.start, plan.shape[0], plan.rows), -2)
    return np.ascontiguousarray(_take(band, _reflect(column.start, plan.shape[1], plan.columns), -1))


def merge(tiles: Sequence[Array], plan: TilePlan, scale: int = 1) -> Array:
    """Joins tiles (..., scale * tile rows, scale * tile columns) to (..., scale * rows, scale * columns)."""
    if len(tiles) != plan.count:
        raise ValueError(f"expected {plan.count} tiles, got {len(tiles)}")
    merged = np.empty((*tiles[0].shape[:-2], plan.rows * scale, plan.columns * scale), tiles[0].dtype)
    for tile, spans in zip(tiles, plan.spans, strict=True):
        place(merged, *spans, scale)[...] = kept(tile, plan, *spans, scale)
    return merged


def kept(tile: Array, plan: TilePlan, row: Span, column: Span, scale: int = 1) -> Array:
    """The part of a tile (..., scale * tile rows, scale * tile columns) that it gives to the result; a view."""
    expected = (plan.shape[0] * scale, plan.shape[1] * scale)
    if tile.shape[-2:] != expected:
        raise ValueError(f"expected a tile of {expected}, got {tile.shape}")
    return tile[..., _kept(row, row.start, scale), _kept(column, column.start, scale)]


def place(merged: Array, row: Span, column: Span, scale: int = 1) -> Array:
    """Where a tile's kept part belongs in (..., scale * rows, scale * columns); a view."""
    return merged[..., _kept(row, 0, scale), _kept(column, 0, scale)]


def _cost(plan: TilePlan) -> tuple[bool, int, int]:
    return (plan.count > 1, plan.count * plan.shape[0] * plan.shape[1], plan.count)


def _ends(
    rows: int, columns: int, shapes: Sequence[tuple[int, int]], multiple: int, halo: int
) -> tuple[int | None, int | None]:
    """Where the whole ends below and to the right; None where that is `halo` pixels past the frame or more."""
    holding = [shape for shape in shapes if shape[0] >= rows and shape[1] >= columns]
    if holding:
        sides = min(holding, key=lambda shape: shape[0] * shape[1])
    else:
        plans = [
            _plan(rows, columns, shape, multiple, halo, _own_ends(rows, columns, shape, multiple, halo))
            for shape in shapes
        ]
        sides = min((plan for plan in plans if plan.count), key=_cost, default=plans[0]).shape
    return _own_ends(rows, columns, sides, multiple, halo)


def _own_ends(
    rows: int, columns: int, shape: tuple[int, int], multiple: int, halo: int
) -> tuple[int | None, int | None]:
    """Where tiles of one shape end when they are free to."""
    return _own_end(rows, shape[0], multiple, halo), _own_end(columns, shape[1], multiple, halo)


def _own_end(size: int, tile: int, multiple: int, halo: int) -> int | None:
    if size <= tile:
        return tile if tile < size + halo else None
    return size if (size - tile) % multiple == 0 else None


def _plan(
    rows: int,
    columns: int,
    shape: tuple[int, int],
    multiple: int,
    halo: int,
    ends: tuple[int | None, int | None],
) -> TilePlan:
    down = _plan_axis(rows, shape[0], multiple, halo, ends[0])
    across = _plan_axis(columns, shape[1], multiple, halo, ends[1])
    return TilePlan(rows, columns, shape, down, across)


def _plan_axis(size: int, tile: int, multiple: int, halo: int, end: int | None) -> tuple[Span, ...]:
    """Spans of tiles of length `tile` over `size` pixels, the last of which ends at `end` (None: `halo` past the
    frame or later); empty where that cannot be."""
    if size <= tile and (tile >= size + halo if end is None else tile == end):
        return (Span(0, 0, size),)
    stride = (tile - 2 * halo) // multiple * multiple
    last = (size + halo if end is None else end) - tile  # where the last tile starts, or later
    if stride < 1 or last < 1 or (end is not None and last % multiple):
        return ()
    steps = -(-last // multiple)  # the last tile starts at this many grid steps
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
