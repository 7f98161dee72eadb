"""Requests and answers of the Open Inference Protocol, version 2, with its binary tensor data extension.

A tensor is taken for the NPY file that holds the same array: so it is decoded, limited and restored as
that file is, and its answer is the array of the NPY answer. The image is one tensor `image`, the answer
one tensor `restored` of the same datatype and number of axes; `AXES` says what they mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import InvalidBody
from models.errors import ImageTooLarge, UnsupportedImage

INPUT, OUTPUT = "image", "restored"
HEADER = "Inference-Header-Content-Length"  # bytes of JSON at the start of a body that goes on with binary data
EXTENSION = "binary_tensor_data"
DATATYPES = {  # little-endian on the wire
    "UINT8": "|u1",
    "INT8": "|i1",
    "UINT16": "<u2",
    "INT16": "<i2",
    "FP32": "<f4",
    "FP64": "<f8",
}
AXES = (
    "(rows, columns), (rows, columns, 1 or 3) for samples, (frames, rows, columns), or (frames, rows, columns, 1 or 3)"
)
JSON_BYTES = 8 * 1024**2  # a parsed number takes ten times the memory of its text
JSON_VALUES = 1024**2


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")  # shared memory, classification: not done here, so not passed over


class _InputParameters(_Parameters):
    binary_data_size: int | None = None


class _OutputParameters(_Parameters):
    binary_data: bool | None = None


class _Input(BaseModel):
    name: Literal["image"]
    shape: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(min_length=2, max_length=4)
    datatype: Literal["UINT8", "INT8", "UINT16", "INT16", "FP32", "FP64"]
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | None = None


class _Output(BaseModel):
    name: Literal["restored"]
    parameters: _OutputParameters = _OutputParameters()


class _Request(BaseModel):
    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] = Field(default=[], max_length=1)


@dataclass(frozen=True)
class Inference:
    """What a request asks for."""

    id: str | None  # the caller's; only ever given back
    options: dict[str, Any]  # its parameters, but for those of the wire
    npy: bytes  # the image
    values: int  # of the image's tensor
    binary: bool  # wants the answer's tensor as binary data


def read_inference(body: bytes, header: str | None) -> Inference:
    """Reads a request's body; `header` is the value of `HEADER`, None where it was not sent.

    Raises InvalidBody, ImageTooLarge where there is more JSON than is read, UnsupportedImage ("shape").
    """
    text, rest = _split(body, header)
    if len(text) > JSON_BYTES:
        raise ImageTooLarge(f"the JSON is larger than {JSON_BYTES} bytes; send the tensor as binary data")
    try:
        request = _Request.model_validate_json(bytes(text))
    except ValidationError as exc:
        raise InvalidBody(reasons(exc)) from exc
    (tensor,) = request.inputs
    if len(tensor.shape) == 4 and tensor.shape[3] not in (1, 3):
        raise UnsupportedImage("shape", f"the axes of {INPUT!r} must be {AXES}")
    options = dict(request.parameters)
    binary = options.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InvalidBody("binary_data_output must be true or false")
    if request.outputs and (own := request.outputs[0].parameters.binary_data) is not None:
        binary = own
    return Inference(request.id, options, _npy(tensor, rest), math.prod(tensor.shape), binary)


def write_inference(
    inference: Inference, npy: bytes, name: str, version: str, parameters: Mapping[str, Any]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the value of `HEADER` where binary data follows its JSON."""
    stream = BytesIO(npy)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    values = memoryview(npy)[stream.tell() :]
    datatype = next(known for known, wire in DATATYPES.items() if np.dtype(wire) == dtype)
    tensor: dict[str, Any] = {"name": OUTPUT, "shape": list(shape), "datatype": datatype}
    if inference.binary:
        tensor["parameters"] = {"binary_data_size": len(values)}
    else:
        tensor["data"] = np.frombuffer(values, dtype).tolist()
    answer = {"model_name": name, "model_version": version, "parameters": parameters, "outputs": [tensor]}
    text = json.dumps(answer if inference.id is None else {"id": inference.id, **answer}).encode()
    return (b"".join([text, values]), len(text)) if inference.binary else (text, None)


def reasons(error: ValidationError) -> str:
    """What does not fit, by its place; never the value."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in found)


def _split(body: bytes, header: str | None) -> tuple[memoryview, memoryview]:
    """The JSON and the binary data of a body."""
    view = memoryview(body)
    if header is None:
        return view, view[:0]
    if not (header.isascii() and header.isdigit() and len(header) < 20 and int(header) <= len(body)):
        raise InvalidBody(f"{HEADER} must be the number of bytes of JSON at the start of the body")
    return view[: int(header)], view[int(header) :]


def _npy(tensor: _Input, rest: memoryview) -> bytes:
    """The tensor as an NPY file."""
    dtype, size = np.dtype(DATATYPES[tensor.datatype]), tensor.parameters.binary_data_size
    needed = math.prod(tensor.shape) * dtype.itemsize
    if (size is None) == (tensor.data is None):
        raise InvalidBody(f"{INPUT!r} needs either data, or binary_data_size and the bytes after the JSON")
    if (size or 0) != len(rest) or (size is not None and size != needed):
        raise InvalidBody(f"{INPUT!r}: shape and datatype need {needed} bytes; {size or 0} announced, {len(rest)} sent")
    values = rest if tensor.data is None else _from_json(tensor.data, tensor.shape, dtype)
    stream = BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(tensor.shape)}
    np.lib.format.write_array_header_1_0(stream, facts)
    return b"".join([stream.getvalue(), values])


def _from_json(data: list[Any], shape: list[int], dtype: np.dtype[Any]) -> bytes:
    """Values that were given flat or nested, in row-major order; none is rounded to an integer, or wrapped."""
    if not _numbers(data):  # one long text among them would make every value as long
        raise InvalidBody(f"the data of {INPUT!r} must be numbers, integers for an integer datatype, flat or nested")
    try:
        array = np.asarray(data)
    except ValueError as exc:
        raise InvalidBody(f"the data of {INPUT!r} are nested unevenly") from exc
    if array.shape not in (tuple(shape), (math.prod(shape),)):
        raise InvalidBody(f"the data of {INPUT!r} must be {math.prod(shape)} values, flat or nested as its shape says")
    whole = np.issubdtype(dtype, np.integer)
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        raise InvalidBody(f"the data of {INPUT!r} must be {'integers' if whole else 'numbers'}")
    if whole and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max:
        raise InvalidBody(f"the data of {INPUT!r} are beyond the range of its datatype")
    with np.errstate(over="ignore"):  # beyond the largest float is infinity, which decoding refuses
        return array.astype(dtype).tobytes()


def _numbers(data: list[Any]) -> bool:
    """Whether nested lists hold nothing but numbers."""
    return all(_numbers(value) if isinstance(value, list) else type(value) in (int, float) for value in data)
