"""Bad input: each kind has its status and message, and the service goes on."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.client import Client, changed, dicom, npy, problem, serving
from tests.reference_images import REFERENCES, png_header

ROUTES = ["/denoise", "/superresolve?scale=2", "/analyze"]
CT = dicom("CT_small.dcm")
PNG = next(reference.data for reference in REFERENCES if reference.format == "png")
BAD: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "invalid-body"),
    "random bytes": (np.random.default_rng(0).bytes(5000), 415, "unknown-format"),
    "text": (b"PatientName: Doe^Jane\n", 415, "unknown-format"),
    "truncated png": (PNG[: len(PNG) // 2], 422, "corrupt-image"),
    "truncated dicom": (CT[:-5000], 422, "corrupt-image"),
    "huge png header": (
        png_header(100_000, 100_000, 16, 0) + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")),
        413,
        "too-large",
    ),
    "dicom without pixels": (dicom("reportsi.dcm"), 422, "unsupported-image"),
    "dicom with its pixels gone": (changed(CT, "PixelData"), 422, "corrupt-image"),
    "dicom of 32 bits": (dicom("rtdose_1frame.dcm"), 422, "unsupported-image"),
    "palette": (dicom("examples_palette.dcm"), 422, "unsupported-image"),
    "nan": (npy(np.array([[1.0, np.nan]])), 422, "non-finite-pixels"),
    "infinity": (npy(np.array([[1.0, np.inf]], np.float32)), 422, "non-finite-pixels"),
    "complex numbers": (npy(np.ones((4, 4), complex)), 422, "unsupported-image"),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_by_kind(client: Client, route: str, name: str) -> None:
    body, status, slug = BAD[name]
    found = problem(client.post(route, body))
    assert (found["status"], found["type"].rpartition(":")[2]) == (status, slug), found
    assert len(found["detail"]) > 10


def test_text_named_dcm_is_refused(client: Client) -> None:
    files = {"file": ("image.dcm", b"this is no image\n", "application/dicom")}
    found = problem(client.request("POST", "/denoise", files=files))
    assert found["status"] in (415, 422)


def test_the_service_goes_on(client: Client, picture: bytes) -> None:
    for body, *_ in BAD.values():
        client.post("/denoise", body)
    assert client.get("/healthz/ready").status_code == 200
    assert client.post("/denoise", picture).status_code == 200
    assert (client.service.gate.requests, client.service.gate.bytes) == (0, 0)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_is_the_services_fault(client: Client, data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([PNG, CT, *(r.data for r in REFERENCES)]), label="file"))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole), 600) - 1))] = data.draw(st.integers(0, 255))
    body = bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    response = client.post("/denoise?strength=0", body)
    assert response.status_code < 500, response.text


@pytest.mark.parametrize(
    ("url", "status", "text"),
    [
        ("/denoise?strenght=1", 422, "strenght"),
        ("/denoise?strength=2", 422, "strength"),
        ("/denoise?strength=nan", 422, "strength"),
        ("/denoise?sigma=0", 422, "sigma"),
        ("/denoise?sigma=much", 422, "sigma"),
        ("/denoise?precision=double", 422, "precision"),
        ("/denoise?strength=0&strength=1", 422, "strength"),
        ("/denoise?model=tiny-x2", 422, "tiny-x2"),
        ("/denoise?model=../etc", 422, "model"),
        ("/denoise?model=nothing", 404, "tiny@1"),
        ("/denoise?model=tiny@9", 404, "tiny@1"),
        ("/superresolve", 422, "scale"),
        ("/superresolve?scale=3", 422, "scale"),
        ("/superresolve?scale=4", 404, "superresolve-x4"),
        ("/superresolve?scale=2&strength=1", 422, "strength"),
        ("/superresolve?scale=2&sigma=1", 422, "sigma"),
        ("/analyze?strength=1", 422, "strength"),
        ("/restore", 404, "POST"),
        ("/models", 405, "POST"),
    ],
)
def test_bad_options_are_refused_by_name(client: Client, picture: bytes, url: str, status: int, text: str) -> None:
    found = problem(client.post(url, picture))
    assert found["status"] == status
    assert text in found["detail"]


def test_a_405_names_what_is_allowed(client: Client) -> None:
    assert client.post("/models", b"").headers["Allow"] == "GET"


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"files": {"file": ("a.npy", b"")}}, 400),
        ({"files": {"image": ("a.npy", b"x")}}, 400),
        ({"files": [("file", ("a.npy", b"x")), ("file", ("b.npy", b"x"))]}, 400),
        ({"files": {"file": ("a.npy", b"x")}, "data": {"strength": "0.5"}}, 400),
        ({"data": {"file": "x"}, "headers": {"Content-Type": "multipart/form-data"}}, 400),
    ],
)
def test_bad_forms_are_refused(client: Client, form: dict[str, Any], status: int) -> None:
    assert problem(client.request("POST", "/denoise", **form))["status"] == status


def test_no_acceptable_type_is_refused_with_a_list(client: Client, picture: bytes) -> None:
    found = problem(client.post("/denoise", picture, accept="application/dicom"))
    assert found["status"] == 406
    assert set(found["available"]) == {"application/x-npy", "image/png", "image/tiff"}
    assert problem(client.post("/denoise", picture, accept="text/html"))["status"] == 406


class Body:
    """A body without a length, that counts how much of it was taken."""

    def __init__(self, chunks: int, size: int) -> None:
        self.chunks, self.size, self.taken = chunks, size, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.chunks):
            self.taken += 1
            yield b"x" * self.size


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "multipart/form-data; boundary=b"}])
def test_a_body_over_the_limit_is_not_read_to_its_end(repository: Path, headers: dict[str, str]) -> None:
    with serving(repository, limit_bytes=100_000, fast_for_8_bit=False) as client:
        body = Body(chunks=1000, size=10_000)
        start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        content = _after(start, body) if headers else body
        found = problem(client.request("POST", "/denoise", content=content, headers=headers))
        assert (found["status"], found["type"]) == (413, "urn:medrestore:problem:too-large")
        assert body.taken <= 12
        declared = client.request("POST", "/denoise", content=Body(1, 10), headers={"Content-Length": "100001"})
        assert declared.status_code == 413


async def _after(start: bytes, body: Body) -> AsyncIterator[bytes]:
    yield start
    async for chunk in body:
        yield chunk


@pytest.mark.parametrize("path", ["/denoise", "/jobs?task=denoise"])
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "multipart/form-data; boundary=b"}])
def test_a_body_that_stops_coming_is_given_up(
    repository: Path, tmp_path: Path, picture: bytes, path: str, headers: dict[str, str]
) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx'
        await asyncio.Event().wait()

    settings = {"stall_s": 0.05, "requests": 1, "jobs": tmp_path / "jobs", "job_free_bytes": 0}
    with serving(repository, fast_for_8_bit=False, **settings) as client:
        response = client.request("POST", path, content=stalling(), headers=headers)
        assert (problem(response)["status"], response.headers["Connection"]) == (408, "close")
        assert list(tmp_path.glob("jobs/files/*")) == []
        assert client.post("/denoise", picture).status_code == 200


def test_too_many_requests_are_told_when_to_come_back(repository: Path, picture: bytes) -> None:
    with serving(repository, requests=1, fast_for_8_bit=False) as client:

        async def burst() -> list[int]:
            sent = [client.send("POST", "/denoise", content=picture) for _ in range(4)]
            answers = await asyncio.gather(*sent)
            assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 429)
            return sorted(answer.status_code for answer in answers)

        assert client.runner.run(burst()) == [200, 429, 429, 429]
        assert client.post("/denoise", picture).status_code == 200


def test_a_spoilt_bundle_is_refused_and_named(repository: Path, picture: bytes) -> None:
    (repository / "tiny" / "1" / "restore.onnx").write_bytes(b"other")
    with serving(repository, fast_for_8_bit=False) as client:
        assert problem(client.post("/denoise?model=tiny@1", picture))["status"] == 503
        assert "tiny@1" in client.get("/models").json()["refused"]
        assert client.post("/superresolve?scale=2", picture).status_code == 200
