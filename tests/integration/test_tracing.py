"""Traces of requests, where the settings ask for them, as an exporter gets them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app import tracing
from tests.integration.client import Client, dicom, npy, serving

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
PICTURE = npy(np.random.default_rng(5).normal(3000, 200, (90, 70)).astype(np.uint16))


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced(built_repository: Path, exporter: InMemorySpanExporter) -> Iterator[Client]:
    """A service whose spans `exporter` gets."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "configured_provider", lambda: provider)
        with serving(built_repository, tracing=True, fast_for_8_bit=False) as client:
            yield client


@pytest.fixture(autouse=True)
def _empty(exporter: InMemorySpanExporter) -> None:
    exporter.clear()


def split(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The server span and those below it."""
    spans = exporter.get_finished_spans()
    (server,) = (span for span in spans if span.kind == SpanKind.SERVER)
    return server, [span for span in spans if span is not server]


def test_a_request_is_a_span_below_the_callers_with_its_stages_below(
    traced: Client, exporter: InMemorySpanExporter
) -> None:
    traced.post("/denoise", PICTURE, headers={"traceparent": TRACEPARENT})
    server, stages = split(exporter)
    assert server.name == "POST /denoise"
    assert server.parent is not None
    assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, CALLER)
    expected = {"receive", "decode", "queue", "run", "prepare", "estimate", "restore", "verify", "finish", "encode"}
    assert {span.name for span in stages} == {*expected, "send"}
    by_id = {span.context.span_id: span.name for span in [server, *stages]}
    parents = {(span.name, by_id[span.parent.span_id]) for span in stages if span.parent}
    assert {(name, server.name) for name in ("receive", "decode", "restore", "encode", "send")} <= parents
    assert {("queue", "restore"), ("run", "restore"), ("run", "estimate"), ("run", "verify")} <= parents
    for span in stages:
        assert span.context.trace_id == server.context.trace_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time


def test_without_a_caller_the_trace_is_new_and_the_log_names_it(
    traced: Client, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        traced.post("/denoise", PICTURE)
    server, _ = split(exporter)
    record = next(r for r in caplog.records if r.name == "medrestore" and r.getMessage() == "request")
    assert record.fields["trace_id"] == f"{server.context.trace_id:032x}"  # type: ignore[attr-defined]
    assert server.parent is None


def test_spans_tell_of_the_work_and_not_of_the_patient(traced: Client, exporter: InMemorySpanExporter) -> None:
    traced.post("/denoise?strength=0.123456789", dicom("CT_small.dcm"))
    server, stages = split(exporter)
    facts = dict(server.attributes or {})
    assert (facts["http.route"], facts["http.response.status_code"]) == ("/denoise", 200)
    assert (facts["medrestore.model"], facts["medrestore.format"], facts["medrestore.rows"]) == ("tiny@1", "dicom", 128)
    everything = "".join(span.to_json() for span in [server, *stages])
    for secret in ("CompressedSamples", "123456789"):
        assert secret not in everything


def test_a_failed_stage_says_of_what_class_and_no_more(traced: Client, exporter: InMemorySpanExporter) -> None:
    traced.post("/denoise", dicom("CT_small.dcm")[:-5000])
    server, stages = split(exporter)
    decode = next(span for span in stages if span.name == "decode")
    assert (decode.status.status_code, decode.status.description) == (StatusCode.ERROR, "CorruptImage")
    assert not decode.events
    assert server.status.status_code == StatusCode.UNSET  # the caller's fault, not the server's
    assert dict(server.attributes or {})["medrestore.problem"] == "corrupt-image"


def test_what_is_asked_every_few_seconds_is_not_traced(traced: Client, exporter: InMemorySpanExporter) -> None:
    for path in ("/healthz/live", "/v1/healthz/ready", "/metrics", "/v2/health/ready"):
        traced.get(path)
    assert exporter.get_finished_spans() == ()


def test_a_long_request_has_a_bounded_number_of_spans(
    traced: Client, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "SPANS_MAX", 10)
    traced.post("/denoise", PICTURE)
    assert len(exporter.get_finished_spans()) == 11
