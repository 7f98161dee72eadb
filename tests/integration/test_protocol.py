"""The Open Inference Protocol gives what the other door gives, and refuses as the protocol has it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.tensor import JSON_BYTES, JSON_VALUES
from tests.integration.client import Client, npy, serving

RANDOM = np.random.default_rng(11)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "UINT8": RANDOM.integers(0, 256, (40, 50), np.uint8),
    "INT8": RANDOM.integers(-128, 128, (40, 50), np.int8),
    "UINT16": RANDOM.normal(3000, 200, (40, 50)).astype(np.uint16),
    "INT16": RANDOM.normal(-500, 200, (2, 40, 30)).astype(np.int16),
    "FP32": RANDOM.normal(0, 1e-3, (30, 40, 3)).astype(np.float32),
    "FP64": RANDOM.normal(1e6, 200, (2, 30, 20, 1)),
}


def infer(
    client: Client,
    array: np.ndarray[Any, Any],
    datatype: str,
    binary: bool = True,
    path: str = "/v2/models/tiny/infer",
    **parameters: Any,
) -> httpx.Response:
    """One inference with binary or JSON tensors both ways."""
    tensor: dict[str, Any] = {"name": "image", "shape": list(array.shape), "datatype": datatype}
    request = {"id": "7", "inputs": [tensor], "parameters": {**parameters, "binary_data_output": binary}}
    if not binary:
        tensor["data"] = array.tolist()
        return client.post(path, json.dumps(request).encode())
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    return send(client, request, array.tobytes(), path)


def send(client: Client, request: Any, values: bytes, path: str = "/v2/models/tiny/infer") -> httpx.Response:
    """JSON with binary data behind it."""
    text = json.dumps(request).encode()
    return client.post(path, text + values, headers={"Inference-Header-Content-Length": str(len(text))})


def restored(response: httpx.Response) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """The answered tensor and the JSON around it."""
    assert response.status_code == 200, response.text
    length = response.headers.get("Inference-Header-Content-Length")
    content = response.content
    answer = json.loads(content if length is None else content[: int(length)])
    (tensor,) = answer["outputs"]
    dtype = ARRAYS[tensor["datatype"]].dtype
    if length is None:
        assert response.headers["Content-Type"] == "application/json"
        return np.array(tensor["data"], dtype).reshape(tensor["shape"]), answer
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert tensor["parameters"]["binary_data_size"] == len(content) - int(length)
    return np.frombuffer(content[int(length) :], dtype).reshape(tensor["shape"]), answer


def error(response: httpx.Response) -> str:
    """The protocol's error."""
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    return str(body["error"])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ARRAYS)
def test_the_pixels_are_those_of_the_other_door(client: Client, datatype: str, binary: bool) -> None:
    array = ARRAYS[datatype]
    expected = np.load(io.BytesIO(client.post("/denoise?strength=0.9&precision=exact", npy(array)).content))
    found, answer = restored(infer(client, array, datatype, binary, strength=0.9, precision="exact"))
    assert answer["outputs"][0]["name"] == "restored"
    assert answer["outputs"][0]["datatype"] == datatype
    assert found.shape == array.shape
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, array)


def test_superresolution_answers_the_larger_image(client: Client) -> None:
    array = ARRAYS["UINT16"]
    expected = np.load(io.BytesIO(client.post("/superresolve?scale=2", npy(array)).content))
    found, answer = restored(infer(client, array, "UINT16", path="/v2/models/tiny-x2/versions/1/infer"))
    assert np.array_equal(found, expected)
    assert "noise_before" not in answer["parameters"]


def test_the_answer_tells_the_model_the_id_and_what_was_measured(client: Client) -> None:
    response = infer(client, ARRAYS["UINT16"], "UINT16", sigma=150)
    _, answer = restored(response)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny", "1")
    told = answer["parameters"]
    assert told["noise_before"] == pytest.approx(150, rel=0.2)
    assert told["noise_after"] > 0
    assert told["removed_rms"] == pytest.approx(float(response.headers["X-Removed-RMS"]), rel=1e-5)
    assert (told["noise_unit"], told["precision"]) == ("grey level", response.headers["X-Precision"])
    assert "Content-Digest" not in response.headers


def test_an_output_may_ask_for_itself_and_unknown_members_of_the_envelope_do_no_harm(client: Client) -> None:
    array = ARRAYS["UINT16"]
    tensor = {"name": "image", "shape": [40, 50], "datatype": "UINT16", "data": array.ravel().tolist()}
    request = {"model_name": "tiny", "inputs": [tensor], "outputs": [{"name": "restored"}]}
    plain, answer = restored(client.post("/v2/models/tiny/infer", json.dumps(request).encode()))
    assert "id" not in answer
    request["outputs"] = [{"name": "restored", "parameters": {"binary_data": True}}]
    assert np.array_equal(restored(client.post("/v2/models/tiny/infer", json.dumps(request).encode()))[0], plain)


def test_metadata_and_health(client: Client) -> None:
    assert client.get("/v2").json()["name"] == "medrestore"
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        metadata = client.get(path).json()
        assert (metadata["name"], metadata["versions"]) == ("tiny", ["1"])
        assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, -1, -1, -1]}]
        assert metadata["outputs"][0]["name"] == "restored"
        assert "frames" in metadata["parameters"]["axes"]
        assert client.get(f"{path}/ready").json() == {"name": "tiny", "ready": True}


@pytest.mark.parametrize("path", ["", "/ready", "/versions/9", "/versions/9/ready"])
def test_a_model_that_is_not_there_is_404(client: Client, path: str) -> None:
    name = "tiny" if "versions" in path else "nothing"
    response = client.get(f"/v2/models/{name}{path}")
    assert response.status_code == 404
    assert "tiny@1" in error(response)


def test_not_ready_is_503(tmp_path: Path, repository: Path) -> None:
    with serving(repository, fast_for_8_bit=False) as client:
        client.app.state.draining = True
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
            response = client.get(path)
            assert response.status_code == 503
            assert "shutting down" in error(response)
        client.app.state.draining = False
        client.runner.run(client.service.engine.stop())
        assert client.get("/v2/health/ready").status_code == 503
        response = infer(client, ARRAYS["UINT8"], "UINT8")
        assert response.status_code == 503
        assert "Retry-After" in response.headers


TENSOR = {"name": "image", "shape": [2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]}


def changed(**members: Any) -> dict[str, Any]:
    """A good request with members of its tensor changed."""
    return {"inputs": [{**TENSOR, **members}]}


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        ([], 400, "body"),
        ({}, 400, "inputs"),
        ({"inputs": [TENSOR, TENSOR]}, 400, "inputs"),
        ({"inputs": [TENSOR], "outputs": [{"name": "noise"}]}, 400, "restored"),
        (changed(name="picture"), 400, "image"),
        (changed(datatype="BF16"), 400, "UINT8"),
        (changed(shape=[4]), 400, "shape"),
        (changed(shape=[0, 4]), 400, "shape"),
        (changed(shape=[10**30, 4]), 400, "shape"),
        (changed(shape=[1, 2, 2, 1, 1]), 400, "shape"),
        (changed(shape=[2, 3]), 400, "6 values"),
        (changed(shape=[1, 1, 2, 2]), 422, "samples"),
        (changed(data=None), 400, "binary_data_size"),
        (changed(data=[[1, 2], [3]]), 400, "unevenly"),
        (changed(data=[[[1]], [[2]], [[3]], [[4]]]), 400, "flat or nested"),
        (changed(data=[1, 2, 3, 256]), 400, "range"),
        (changed(data=[1, 2, 3, -1]), 400, "range"),
        (changed(data=[1, 2, 3, 10**30]), 400, "integers"),
        (changed(data=[1, 2, 3, 4.5]), 400, "integers"),
        (changed(data=["1", "2", "3", "4"]), 400, "integers"),
        (changed(data=[1, 2, 3, None]), 400, "integers"),
        (changed(datatype="FP32", data=["a", "b", "c", "d"]), 400, "numbers"),
        (changed(datatype="FP32", data=[1, 2, 3, 1e300]), 422, "infinite"),
        (changed(parameters={"shared_memory_region": "x"}), 400, "shared_memory_region"),
        (changed(parameters={"binary_data_size": 4}), 400, "data"),
        ({"inputs": [TENSOR], "parameters": {"binary_data_output": "yes"}}, 400, "binary_data_output"),
        ({"inputs": [TENSOR], "parameters": {"strenght": 1}}, 422, "strenght"),
        ({"inputs": [TENSOR], "parameters": {"strength": 2}}, 422, "strength"),
        ({"inputs": [TENSOR], "parameters": {"model": "other"}}, 422, "model"),
        ({"inputs": [TENSOR], "outputs": [{"name": "restored", "parameters": {"classification": 2}}]}, 400, "class"),
    ],
)
def test_bad_requests_are_refused(client: Client, request_: Any, status: int, text: str) -> None:
    response = client.post("/v2/models/tiny/infer", json.dumps(request_).encode())
    assert response.status_code == status, response.text
    assert text in error(response)


@pytest.mark.parametrize(
    ("header", "values", "size"),
    [
        ("-1", b"1234", 4),
        ("x", b"1234", 4),
        ("9999", b"1234", 4),
        ("10", b"1234", 4),
        (None, b"123", 4),
        (None, b"12345", 4),
        (None, b"1234", 5),
        (None, b"12345", 5),
        (None, b"", 4),
    ],
)
def test_bad_binary_data_are_refused(client: Client, header: str | None, values: bytes, size: int) -> None:
    text = json.dumps(changed(data=None, parameters={"binary_data_size": size})).encode()
    length = str(len(text)) if header is None else header
    response = client.post("/v2/models/tiny/infer", text + values, headers={"Inference-Header-Content-Length": length})
    assert response.status_code == 400
    assert len(error(response)) > 10


def test_limits_hold_before_anything_is_decoded(repository: Path) -> None:
    with serving(repository, limit_bytes=3 * JSON_BYTES, limit_pixels=1999, fast_for_8_bit=False) as client:
        for binary in (True, False):
            response = infer(client, ARRAYS["UINT8"], "UINT8", binary)
            assert response.status_code == 413
            assert "limit of 1999" in error(response)
        response = client.post("/v2/models/tiny/infer", b" " * (JSON_BYTES + 1))
        assert (response.status_code, "binary" in error(response)) == (413, True)
        assert client.post("/v2/models/tiny/infer", b" " * (3 * JSON_BYTES + 1)).status_code == 413
        assert client.post("/v2/models/tiny/infer", b"").status_code == 400


def test_an_answer_too_large_for_json_is_refused_before_the_work(client: Client) -> None:
    side = 1 + int(JSON_VALUES**0.5) // 2
    array = np.zeros((side, side), np.uint8)
    tensor = {"name": "image", "shape": list(array.shape), "datatype": "UINT8"}
    request = {"inputs": [{**tensor, "parameters": {"binary_data_size": array.nbytes}}]}
    response = send(client, request, array.tobytes(), "/v2/models/tiny-x2/infer")
    assert response.status_code == 413
    assert "binary_data_output" in error(response)


def test_headers_are_those_of_the_other_door(client: Client) -> None:
    text = json.dumps(changed()).encode()
    path = "/v2/models/tiny/infer"
    assert client.post(path, text, headers={"X-Priority": "bulk"}).headers["X-Queue-Position"] == "0"
    for headers, status in [
        ({"X-Priority": "urgent"}, 422),
        ({"X-Deadline-Ms": "soon"}, 422),
        ({"Content-Encoding": "gzip"}, 400),
    ]:
        response = client.post(path, text, headers=headers)
        assert response.status_code == status
        assert len(error(response)) > 10


def test_an_option_of_another_task_is_refused(client: Client) -> None:
    path = "/v2/models/tiny-x2/infer"
    for option in ({"strength": 1}, {"scale": "2"}):
        response = infer(client, ARRAYS["UINT8"], "UINT8", path=path, **option)
        assert response.status_code == 422
        assert next(iter(option)) in error(response)
