"""The protocol's envelope: nothing that is sent makes it fail in a way that nobody foresaw."""

from __future__ import annotations

import io
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.tensor import DATATYPES, Inference, read_inference, write_inference
from models.errors import MedRestoreError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("image"), "shape": st.lists(st.integers(0, 4), min_size=1, max_size=5)},
    optional={
        "datatype": st.sampled_from([*DATATYPES, "BYTES"]),
        "data": ANYTHING,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "x"]), LEAVES),
    },
)


@settings(max_examples=50, deadline=None)
@given(tensor=TENSORS, rest=st.binary(max_size=40), header=st.none() | st.text(max_size=4), exact=st.booleans())
def test_what_is_sent_is_read_or_refused(
    tensor: dict[str, object], rest: bytes, header: str | None, exact: bool
) -> None:
    text = json.dumps({"inputs": [tensor]}).encode()
    try:
        inference = read_inference(text + rest, str(len(text)) if exact else header)
    except MedRestoreError:
        return
    assert np.load(io.BytesIO(inference.npy)).shape == tuple(tensor["shape"])  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    array=st.sampled_from(list(DATATYPES.values())).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            arrays.array_shapes(min_dims=2, max_dims=3, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False} if "f" in dtype else None,
        )
    ),
    binary=st.booleans(),
)
def test_values_pass_both_ways_bit_for_bit(array: np.ndarray, binary: bool) -> None:
    npy = io.BytesIO()
    np.save(npy, array)
    wanted = Inference("1", {}, b"", array.size, binary)
    body, length = write_inference(wanted, npy.getvalue(), "m", "1", {})
    text = body if length is None else body[:length]
    answer = json.loads(text)
    (tensor,) = answer["outputs"]
    tensor["name"] = "image"
    request = json.dumps({"inputs": [tensor]}).encode()
    again = read_inference(request + body[len(text) :], None if length is None else str(len(request)))
    assert np.array_equal(np.load(io.BytesIO(again.npy)), array)
