"""OpenTelemetry traces of requests, where the settings ask for them; its SDK is not even imported otherwise.

A request is a server span, a child of the span that its `traceparent` header names; its stages are
spans below it, by the names that `Server-Timing` has. Spans hold what the log holds and no more.
Exporter, sampler, resource and propagators follow the `OTEL_` variables of the OpenTelemetry
specification; the default exporter is OTLP over HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from app.build import PRODUCT, build_facts
from models.errors import OptionError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.trace import Tracer as OpenTelemetryTracer

SPANS_MAX = 256  # of one request; an object of 500 frames would have thousands
MISSING = "tracing is on, but OpenTelemetry is not installed: pip install 'medrestore[otel]', or set tracing to false"

_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


@contextmanager
def span(stage: str) -> Iterator[None]:
    """A stage of the request that is being answered; nothing where that is not traced."""
    trace = _current.get()
    if trace is None:
        yield
    else:
        with trace.stage(stage):
            yield


def ran(queue_s: float, run_s: float) -> None:
    """A graph's wait and run that have just ended."""
    trace = _current.get()
    if trace is not None:
        trace.past("queue", queue_s, ago_s=run_s)
        trace.past("run", run_s)


class Trace:
    """One request's server span, and how many more it may have below."""

    def __init__(self, tracer: OpenTelemetryTracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._left = SPANS_MAX

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, as in `traceparent`."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A span around the block, below the one that is open."""
        if not self._take():
            yield
            return
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield
            except BaseException as exc:
                _fail(span, type(exc).__name__)  # never the message, which a decoder may have written
                raise

    def past(self, name: str, seconds: float, ago_s: float = 0.0) -> None:
        """A span that took `seconds` and ended `ago_s` seconds ago."""
        if self._take():
            end = time.time_ns() - round(1e9 * ago_s)
            self._tracer.start_span(name, start_time=end - round(1e9 * seconds)).end(end)

    def describe(self, method: str, route: str, status: int, facts: Mapping[str, Any]) -> None:
        """What is known when the answer is out; `facts` are those of the log."""
        self._span.update_name(f"{method} {route}")
        standard: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        own = {f"{PRODUCT}.{name}": value for name, value in facts.items() if not name.endswith("_s")}
        self._span.set_attributes(standard | own)
        if status >= 500:
            _fail(self._span, str(facts.get("problem", "")))

    def _take(self) -> bool:
        self._left -= 1
        return self._left >= 0


class Tracer:
    """Makes the spans. Raises OptionError where OpenTelemetry, or the exporter that is named, is not installed."""

    def __init__(self) -> None:
        self._provider = configured_provider()
        self._tracer = self._provider.get_tracer(PRODUCT, build_facts()["version"])

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Trace]:
        """A server span around the block, below the caller's."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span("request", extract(headers), SpanKind.SERVER) as span:
            trace = Trace(self._tracer, span)
            token = _current.set(trace)
            try:
                yield trace
            finally:
                _current.reset(token)

    def shutdown(self) -> None:
        """Sends what waits to be sent; blocks for seconds at most."""
        self._provider.shutdown()


def configured_provider() -> TracerProvider:
    """A provider by the `OTEL_` variables, with a processor for each exporter."""
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise OptionError(MISSING) from exc
    own = Resource.create({"service.name": PRODUCT, "service.version": build_facts()["version"]})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()))
    for name in exporter_names():
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    return provider


def exporter_names() -> list[str]:
    """Entry points of the exporters: `OTEL_TRACES_EXPORTER`, where "otlp" goes by its protocol."""
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = f"otlp_proto_{(protocol or 'http/protobuf').partition('/')[0]}"
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    return [otlp if name == "otlp" else name for name in names if name != "none"]


def _exporter(name: str) -> Any:
    for entry in entry_points(group="opentelemetry_traces_exporter", name=name):
        return entry.load()()
    raise OptionError(f"the trace exporter {name!r}, which the OTEL_ variables name, is not installed")


def _fail(span: Span, description: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, description))
