"""Cutting frames into tiles and joining them: nothing lost, nothing seen."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.imaging.tiles import TilePlan, cut, merge, plan_tiles, whole_plan

Array = np.ndarray[Any, Any]
Job = tuple[int, int, list[tuple[int, int]], int, int]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Rows, columns, shapes, multiple and halo of which at least one shape leaves room between halos."""
    multiple, halo = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(0, 9))
    smallest = -(-(2 * halo + multiple) // multiple)
    sides = st.integers(smallest, smallest + 6).map(lambda steps: steps * multiple)
    shapes = sorted(draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=4)))
    return draw(st.integers(1, 90)), draw(st.integers(1, 90)), shapes, multiple, halo


def image(rows: int, columns: int, *leading: int) -> Array:
    return np.random.default_rng(rows + columns).normal(size=(*leading, rows, columns)).astype(np.float32)


def box(array: Array, radius: int) -> Array:
    """Sum over (2 radius + 1)^2 pixels with zeros beyond the borders: a convolution that sees `radius` far."""
    padded = np.pad(array, radius)
    size = 2 * radius + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size)).sum((2, 3))


@given(jobs(), st.sampled_from([(), (3,), (2, 1)]))
def test_merging_what_was_cut_gives_the_frame(job: Job, leading: tuple[int, ...]) -> None:
    rows, columns, *_ = job
    frame, plan = image(rows, columns, *leading), plan_tiles(*job)
    tiles = cut(frame, plan)
    assert len(tiles) == plan.count
    assert all(tile.shape == (*leading, *plan.shape) and tile.flags.c_contiguous for tile in tiles)
    assert merge(tiles, plan).tobytes() == frame.tobytes()


@given(jobs(), st.sampled_from([2, 4]))
def test_merging_enlarged_tiles_gives_the_enlarged_frame(job: Job, scale: int) -> None:
    frame, plan = image(job[0], job[1]), plan_tiles(*job)
    enlarged = [tile.repeat(scale, 0).repeat(scale, 1) for tile in cut(frame, plan)]
    assert np.array_equal(merge(enlarged, plan, scale), frame.repeat(scale, 0).repeat(scale, 1))


@given(jobs(), st.data())
def test_a_convolution_within_the_halo_shows_no_tiles_whatever_shapes_are_allowed(
    job: Job, data: st.DataObject
) -> None:
    rows, columns, shapes, multiple, halo = job
    free = plan_tiles(*job)
    allowed = data.draw(st.lists(st.sampled_from(shapes), min_size=1, unique=True))
    try:
        plan = plan_tiles(*job, allowed)
    except ValueError:
        assume(False)
    radius = data.draw(st.integers(0, halo))
    frame = np.random.default_rng(0).integers(0, 100, (rows, columns)).astype(np.float64)  # sums are exact
    whole = whole_plan(free, multiple, halo)
    expected = merge([box(tile, radius) for tile in cut(frame, whole)], whole)
    assert whole.count == 1
    assert np.array_equal(merge([box(tile, radius) for tile in cut(frame, plan)], plan), expected)


@given(jobs())
def test_a_shape_that_is_no_larger_can_always_take_over(job: Job) -> None:
    *_, multiple, halo = job
    chosen = plan_tiles(*job).shape
    smaller = [shape for shape in job[2] if max(shape) <= min(chosen) and min(shape) >= 2 * halo + multiple]
    for shape in smaller:
        assert plan_tiles(*job, [shape]).shape == shape


@given(jobs())
def test_tiles_start_on_the_grid_and_keep_their_halo(job: Job) -> None:
    rows, columns, shapes, multiple, halo = job
    plan = plan_tiles(*job)
    assert plan.shape in shapes
    for spans, size, side in ((plan.row_spans, rows, plan.shape[0]), (plan.column_spans, columns, plan.shape[1])):
        assert spans[0].first == 0
        assert spans[-1].last == size
        assert all(before.last == after.first for before, after in pairwise(spans))
        for span in spans:
            assert span.start % multiple == 0
            assert span.first < span.last
            assert span.first == 0 or span.first - span.start >= halo
            end = span.start + side
            assert end - span.last >= halo or span.last == size


@given(jobs())
def test_plan_follows_from_size_alone_and_prefers_the_smallest_whole_tile(job: Job) -> None:
    rows, columns, shapes, *_ = job
    plan = plan_tiles(*job)
    assert plan == plan_tiles(*job)
    whole = [shape for shape in shapes if shape[0] >= rows and shape[1] >= columns]
    if whole:
        assert plan.count == 1
        assert np.prod(plan.shape) == min(np.prod(shape) for shape in whole)


def test_fewest_pixels_decide_where_no_tile_holds_the_frame() -> None:
    shapes = [(64, 64), (256, 256), (512, 512)]
    assert plan_tiles(512, 512, shapes, 16, 32).shape == (512, 512)
    assert plan_tiles(520, 400, shapes, 16, 32).shape == (256, 256)
    assert plan_tiles(1000, 1000, shapes, 16, 16).shape == (256, 256)
    assert plan_tiles(992, 992, shapes, 16, 16).shape == (512, 512)
    assert plan_tiles(1000, 60, [(64, 64), (512, 512)], 8, 8).shape == (64, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (3, 1)])
def test_tiny_frames_are_reflected_again_and_again(size: tuple[int, int]) -> None:
    frame = image(*size)
    (tile,) = cut(frame, plan_tiles(*size, [(16, 16)], 8, 4))
    expected = np.pad(frame, [(0, 16 - side) for side in size], "reflect" if min(size) > 1 else "symmetric")
    if min(size) > 1:
        assert np.array_equal(tile, expected)
    assert set(tile.ravel()) == set(frame.ravel())


def test_tile_without_room_between_halos_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        plan_tiles(100, 100, [(32, 32)], 8, 16)
    assert plan_tiles(32, 32, [(32, 32)], 8, 16).count == 1  # a whole frame needs no halo


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_empty_frame_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be tiled"):
        plan_tiles(*size, [(8, 8)], 1, 0)


def test_wrong_arrays_are_refused() -> None:
    plan: TilePlan = plan_tiles(20, 20, [(16, 16)], 4, 2)
    tiles = cut(image(20, 20), plan)
    with pytest.raises(ValueError, match="does not fit"):
        cut(image(20, 21), plan)
    for wrong, scale in ((tiles[:-1], 1), (tiles, 2)):
        with pytest.raises(ValueError, match="expected"):
            merge(wrong, plan, scale)
