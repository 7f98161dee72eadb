"""Arrays arrive as they were sent."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.channel import receive, send

dtypes = st.sampled_from([np.float32, np.float64, np.int64, np.uint8])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


def exchange(message, sent):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        thread = threading.Thread(target=send, args=(ours, message, sent))
        thread.start()
        received = receive(theirs)
        thread.join()
    return received


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), arrays, max_size=3), st.text())
def test_what_is_sent_arrives(sent, message):
    answer, received = exchange(message, sent)
    assert answer == message
    assert list(received) == list(sent)
    for name, array in sent.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        assert received[name].tobytes() == array.tobytes()


def test_strided_and_large_arrays_arrive():
    base = np.arange(4_000_000, dtype=np.float32).reshape(2000, 2000)
    _, received = exchange(None, {"strided": base[::3, ::-2], "large": base})
    np.testing.assert_array_equal(received["strided"], base[::3, ::-2])
    np.testing.assert_array_equal(received["large"], base)


def test_a_closed_pipe_is_an_error_on_both_sides():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours, pytest.raises(OSError, match="pipe"):
        send(ours, "anyone?")
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours, pytest.raises(EOFError):
        receive(ours)
