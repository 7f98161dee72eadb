"""What callers see beside the image: headers, reports, health, metrics, OpenAPI, versions of paths."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from app.openapi import document
from app.routes import jobs, pacs, v2
from app.settings import Settings
from tests.integration.client import Client, changed, dicom, npy, problem, serving
from tests.reference_images import REFERENCES
from tests.tiny_bundle import write_coloured

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"


def test_headers_tell_what_was_done(client: Client, picture: bytes) -> None:
    response = client.post("/denoise", picture)
    bundle = client.service.catalogue.lookup("tiny", "denoise")
    assert response.headers["X-Model"] == "tiny@1"
    assert response.headers["X-Model-Digest"] == bundle.digest
    assert (response.headers["X-Backend"], response.headers["X-Precision"]) == ("onnx", "fp32")
    assert response.headers["X-Noise-Unit"] == "grey level"
    assert float(response.headers["X-Noise-Before"]) > float(response.headers["X-Noise-After"]) > 0
    assert response.headers["X-Clip-Count"] == "0"
    assert response.headers["X-In-Trained-Range"] == "true"
    digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
    assert response.headers["Content-Digest"] == f"sha-256=:{digest}:"
    stages = re.findall(r"(\w+);dur=[0-9.]+", response.headers["Server-Timing"])
    assert {"receive", "decode", "estimate", "restore", "encode", "queue", "run", "total"} <= set(stages)


def test_headers_tell_what_was_removed(client: Client, picture: bytes) -> None:
    headers = client.post("/denoise", picture).headers
    assert float(headers["X-Removed-Max"]) > float(headers["X-Removed-RMS"]) > 0
    across, down = map(float, headers["X-Removed-Correlation"].split(","))
    assert -0.3 < across < 0.3
    assert -0.3 < down < 0.3
    assert "X-Noise-Correlation" not in headers  # this model's estimator does not tell it


def test_a_model_that_tells_the_correlation_is_served_beside_one_that_does_not(
    repository: Path, picture: bytes
) -> None:
    write_coloured(repository)
    with serving(repository, denoise_model="tiny") as client:
        told = {}
        for name in ("tiny", "coloured"):
            headers = client.post(f"/denoise?model={name}", picture).headers
            assert headers["X-Model"] == f"{name}@1"
            told[name] = headers.get("X-Noise-Correlation")
        assert told == {"tiny": None, "coloured": "0.500, 0.250, 0.062, -0.125"}
        assert (
            client.post("/denoise?model=coloured&sigma=5", picture).headers["X-Noise-Correlation"] == told["coloured"]
        )
        report = client.post("/analyze?model=coloured", picture).json()
        assert report["correlation"] == {
            "by": "model",
            "lag_1_x": 0.5,
            "lag_1_y": 0.25,
            "lag_2_x": 0.0625,
            "lag_2_y": -0.125,
        }
        assert report["in_trained_range"]["correlation"] is True
        text = client.post("/denoise?model=coloured", dicom("CT_small.dcm")).content
        assert b"noise correlation 0.5 across 0.25 down" in text
        assert b"removed correlation" in text


def test_superresolution_claims_nothing_about_noise(client: Client, picture: bytes) -> None:
    response = client.post("/superresolve?scale=2", picture)
    assert response.headers["X-Model"] == "tiny-x2@1"
    assert "X-Noise-Before" not in response.headers
    assert "X-In-Trained-Range" not in response.headers


@pytest.mark.parametrize(
    ("name", "lossy", "note"), [("jpeg_grey", "true", None), ("png_grey2", "false", "2-bit grey expanded to 8 bits")]
)
def test_what_the_input_had_lost_or_gained_is_declared(client: Client, name: str, lossy: str, note: str | None) -> None:
    (body,) = (reference.data for reference in REFERENCES if reference.name == name)
    headers = client.post("/denoise", body).headers
    assert headers["X-Input-Lossy"] == lossy
    assert headers.get("X-Input-Notes") == note


def test_8_bit_is_fast_where_that_is_to_be_had_and_exact_on_demand(client: Client) -> None:
    body = npy(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    bundle = client.service.catalogue.lookup("tiny", "denoise")
    quick = "bf16" if client.service.engine.supports(bundle, "bf16") else "fp32"
    assert client.post("/denoise", body).headers["X-Precision"] == quick
    assert client.post("/denoise?precision=exact", body).headers["X-Precision"] == "fp32"


def test_dicom_is_exact_unless_asked(client: Client) -> None:
    assert client.post("/denoise", dicom("SC_rgb_small_odd.dcm")).headers["X-Precision"] == "fp32"


def test_without_a_fast_mode_the_exact_one_answers(repository: Path) -> None:
    body = npy(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    with serving(repository, fast_backend="onnx") as client:  # which has no bf16
        response = client.post("/denoise?precision=fast", body)
        assert (response.headers["X-Precision"], response.headers["X-Backend"]) == ("fp32", "onnx")
        assert response.content == client.post("/denoise?precision=exact", body).content


def test_a_form_answers_as_a_raw_body_does(client: Client, picture: bytes) -> None:
    raw = client.post("/denoise", picture, headers={"Content-Type": "text/plain"})
    form = client.request("POST", "/denoise", files={"file": ("scan.npy", picture, "application/x-npy")})
    assert form.status_code == 200
    assert form.content == raw.content


def test_paths_answer_under_v1_too(client: Client, picture: bytes) -> None:
    assert client.post("/v1/denoise", picture).content == client.post("/denoise", picture).content
    for path in ("/models", "/healthz/live", "/healthz/ready", "/metrics"):
        assert client.get(f"/v1{path}").status_code == 200


def test_analyze_reports_the_noise(client: Client) -> None:
    body = npy(np.random.default_rng(3).normal(20_000, 500, (2, 100, 120)).astype(np.uint16))
    report = client.post("/analyze", body).json()
    assert report["model"] == "tiny@1"
    assert report["unit"] == "grey level"
    assert report["level"] == pytest.approx(500, rel=0.05)
    assert report["function"]["offset"] == pytest.approx(250_000, rel=0.1)
    assert abs(report["correlation"]["lag_1_x"]) < 0.06
    assert report["correlation"]["by"] == "patches"
    assert report["in_trained_range"] == {"level": True, "correlation": True}
    assert len(report["frames"]) == 2


def test_analyze_of_ct_is_in_hu(client: Client) -> None:
    report = client.post("/analyze", dicom("CT_small.dcm")).json()
    assert report["unit"] == "HU"
    assert 1 < report["level"] < 200


def test_a_unit_that_no_header_can_hold_is_no_error(client: Client) -> None:
    body = changed(dicom("CT_small.dcm"), SpecificCharacterSet="ISO_IR 192", RescaleType="µg\u2009/ l")
    response = client.post("/denoise", body)
    assert response.status_code == 200, response.text
    assert response.headers["X-Noise-Unit"].isascii()
    assert client.post("/analyze", body).status_code == 200


def test_models_are_listed(client: Client) -> None:
    models = client.get("/models").json()["models"]
    facts = {model["name"]: model for model in models}
    assert facts["tiny"]["task"] == "denoise"
    assert facts["tiny"]["default"] is True
    assert facts["tiny-x2"]["scale"] == 2
    assert len(facts["tiny"]["digest"]) == 64
    assert problem(client.get("/models?all=1"))["status"] == 422


@pytest.mark.parametrize(("sent", "kept"), [("a-1.B_2", True), ("x" * 65, False), ("a b", False), ("é", False)])
def test_a_sane_request_id_is_kept(client: Client, sent: str, kept: bool) -> None:
    response = client.get("/healthz/live", headers={"X-Request-Id": sent.encode()})
    assert (response.headers["X-Request-Id"] == sent) is kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", response.headers["X-Request-Id"])


def test_not_ready_says_why(tmp_path: Path, picture: bytes) -> None:
    app = create_app(Settings(repository=tmp_path, access="open"))

    async def ask() -> list[Any]:
        async with app.router.lifespan_context(app):
            client = Client(app, None)  # type: ignore[arg-type]
            live, ready = await client.send("GET", "/healthz/live"), await client.send("GET", "/healthz/ready")
            return [live, ready, await client.send("POST", "/denoise", content=picture)]

    live, ready, denoise = asyncio.run(ask())
    assert live.status_code == 200
    assert problem(ready)["status"] == 503
    assert "ready" in problem(ready)["detail"]
    assert problem(denoise)["status"] in (404, 503)


def test_metrics_are_in_base_units_with_closed_labels(client: Client, picture: bytes) -> None:
    client.post("/denoise", picture)
    for path in ("/secret-1", "/secret-2", "/v1/secret-3"):
        client.get(path)
    client.request("BREW", "/denoise")
    text = client.get("/metrics").text
    assert "secret" not in text
    assert "BREW" not in text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    routes = {sample.labels["route"] for sample in families["medrestore_requests"].samples}
    assert routes <= {
        "unmatched",
        *(f"{p}{r}" for p in ("", "/v1") for r in ("/denoise", "/superresolve", "/analyze", "/models", "/metrics")),
        *(f"{p}{r}" for p in ("", "/v1") for r in ("/healthz/live", "/healthz/ready")),
        *(route.path for route in v2.router.routes),  # type: ignore[attr-defined]
        *(route.path for route in pacs.router.routes),  # type: ignore[attr-defined]
        *(f"{p}{route.path}" for p in ("", "/v1") for route in jobs.router.routes),  # type: ignore[attr-defined]
    }
    assert families["medrestore_request_duration_seconds"].type == "histogram"
    for name in ("medrestore_stage_duration_seconds", "medrestore_queue_pixels", "medrestore_noise_level"):
        assert families[name].samples
    up = families["medrestore_worker_up"].samples
    assert [sample.value for sample in up] == [1.0]
    stages = {sample.labels["stage"] for sample in families["medrestore_stage_duration_seconds"].samples}
    assert {"receive", "decode", "queue", "run", "estimate", "restore", "verify", "encode", "send"} <= stages
    (memory,) = families["medrestore_worker_resident_bytes"].samples
    assert memory.value > 10_000_000
    (build,) = families["medrestore_build_info"].samples
    assert {"version", "python", "numpy"} <= set(build.labels)
    ours = [name for name in families if name.startswith("medrestore")]
    assert not [name for name in ours if re.search(r"_(ms|milliseconds|kb|mb|percent)$", name)]


def test_the_padding_of_tiles_is_counted(client: Client) -> None:
    def counted() -> dict[str, float]:
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
        return {sample.labels["kind"]: sample.value for sample in families["medrestore_tile_pixels"].samples}

    client.post("/denoise", npy(np.zeros((16, 16), np.uint16)))
    before = counted()
    client.post("/denoise", npy(np.zeros((2, 20, 30, 3), np.uint16)))  # six planes, each in one tile of 32 x 32
    after = counted()
    assert after["useful"] - before["useful"] == 6 * 20 * 30
    assert after["padding"] - before["padding"] == 6 * (32 * 32 - 20 * 30)


def test_logs_hold_no_name_and_no_query(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        files = {"file": ("Doe_Jane.dcm", dicom("CT_small.dcm"), "application/dicom")}
        response = client.request("POST", "/denoise?strength=0.123456789", files=files)
    record = next(r for r in caplog.records if r.name == "medrestore" and r.getMessage() == "request")
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["request_id"] == response.headers["X-Request-Id"]
    assert (fields["route"], fields["status"]) == ("/denoise", 200)
    assert fields["request_bytes"] > 1000
    assert (fields["model"], fields["format"], fields["rows"]) == ("tiny@1", "dicom", 128)
    assert fields["decode_s"] > 0
    ours = [r for r in caplog.records if not r.name.startswith("http")]  # the caller's own library
    everything = json.dumps([[r.name, r.getMessage(), str(vars(r))] for r in ours])
    for secret in ("Jane", "CompressedSamples", "123456789"):
        assert secret not in everything


def test_an_unforeseen_error_is_a_problem_and_no_more(
    client: Client, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("Doe^Jane")

    monkeypatch.setattr("app.service.demand", broken)
    found = problem(client.post("/denoise", picture))
    assert (found["status"], found["type"]) == (500, "urn:medrestore:problem:internal")
    assert "Jane" not in json.dumps(found)
    monkeypatch.undo()
    assert client.post("/denoise", picture).status_code == 200


def test_openapi_is_the_committed_document(built_repository: Path) -> None:
    current = document(create_app(Settings(repository=built_repository)))
    assert json.loads(current) == json.loads(GOLDEN.read_text()), (
        "the interface changed; if that is meant: python -m app.openapi > tests/golden/openapi.json"
    )


def test_openapi_is_served_and_no_page_loads_scripts_from_elsewhere(client: Client) -> None:
    assert client.get("/openapi.json").json() == json.loads(GOLDEN.read_text())
    assert client.get("/docs").status_code == 404


def test_a_caller_who_goes_leaves_nothing_behind(client: Client) -> None:
    body = npy(np.random.default_rng(5).normal(3000, 200, (1500, 1500)).astype(np.uint16))
    sent = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if len(sent) == 1:
            while client.service.engine.running_items == 0:
                await asyncio.sleep(0.001)
        return sent.pop(0)

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/denoise",
        "raw_path": b"/denoise",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "server": ("service", 80),
    }
    client.runner.run(asyncio.wait_for(client.app(scope, receive, send), 60))  # type: ignore[arg-type]
    assert answers[0]["status"] == 499
    assert client.service.engine.queued_items == 0
    assert (client.service.gate.requests, client.service.gate.bytes) == (0, 0)
