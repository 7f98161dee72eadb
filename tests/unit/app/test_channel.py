"""Arrays arrive as they were sent, through memory that both sides have mapped."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.channel import KEPT, Channel, split

dtypes = st.sampled_from([np.float32, np.float64, np.int64, np.uint8])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@contextmanager
def channels() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield Channel(ours), Channel(theirs)


def pass_on(ours: Channel, theirs: Channel, message, items=()):
    thread = threading.Thread(target=ours.send, args=(message, items))
    thread.start()
    received = theirs.receive()
    thread.join()
    return received


@settings(deadline=None)
@given(st.lists(st.tuples(st.dictionaries(st.text(max_size=5), arrays, max_size=3), st.text()), min_size=1, max_size=4))
def test_what_is_sent_arrives(messages):
    with channels() as (ours, theirs):
        for sent, message in messages:
            answer, received = pass_on(ours, theirs, message, [sent])
            assert answer == message
            assert list(received) == list(sent)
            for name, array in sent.items():
                assert received[name].dtype == array.dtype
                assert received[name].shape == array.shape
                assert received[name].tobytes() == array.tobytes()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 4))
def test_items_are_stacked_and_taken_apart(rows, columns):
    rng = np.random.default_rng(sum(rows))
    items = [{"image": rng.random((1, rows[0], columns), np.float32), "level": rng.random((1,))} for _ in rows]
    with channels() as (ours, theirs):
        _, stacked = pass_on(ours, theirs, None, items)
        parts = split(stacked, len(items))
        pass_on(ours, theirs, None, [{"image": np.full((1, rows[0] * len(rows), columns), 9, np.float32)}])
    for item, part in zip(items, parts, strict=True):  # copies: what came later has not changed them
        assert {name: array.tobytes() for name, array in item.items()} == {k: v.tobytes() for k, v in part.items()}


def test_strided_and_large_arrays_arrive_and_their_memory_is_given_back():
    base = np.arange(KEPT // 4 // 2000 * 2000 + 4000, dtype=np.float32).reshape(-1, 2000)
    with channels() as (ours, theirs):
        _, received = pass_on(ours, theirs, None, [{"strided": base[::3, ::-2], "large": base}])
        np.testing.assert_array_equal(received["strided"], base[::3, ::-2])
        np.testing.assert_array_equal(received["large"], base)
        del received
        before = mapped_bytes()
        pass_on(ours, theirs, None, [{"small": np.zeros(8)}])
        assert mapped_bytes() < before - 2 * KEPT


def test_a_conversation_leaves_no_descriptor_behind():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with channels() as (ours, theirs):
            for size in (10, 3_000_000, 10):
                pass_on(ours, theirs, None, [{"array": np.zeros(size)}])
                pass_on(theirs, ours, None, [{"array": np.zeros(size)}])
        del ours, theirs
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_pipe_is_an_error_on_both_sides():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours, pytest.raises(OSError, match="pipe"):
        Channel(ours).send("anyone?")
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours, pytest.raises(EOFError):
        Channel(ours).receive()


def mapped_bytes() -> int:
    """Shared memory of this process's regions."""
    regions = [
        line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:medrestore" in line
    ]
    return sum(int(end, 16) - int(start, 16) for start, end in (region.split("-") for region in regions))
