"""How tracing is set up, and that nothing of it is there while it is off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import tracing
from models.errors import OptionError

ROOT = Path(__file__).parents[3]
IMPORTED = """
import sys
from app.main import create_app
from app.settings import Settings
create_app(Settings())
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
GLOBAL_PROVIDER = """
import asyncio, httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from app.main import create_app
from app.settings import Settings

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

async def ask():
    transport = httpx.ASGITransport(create_app(Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        return (await http.get("/healthz/live")).status_code

print(asyncio.run(ask()), len(exporter.get_finished_spans()))
"""


def run(program: str) -> str:
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return found.stdout.strip()


def test_the_sdk_is_not_imported_while_tracing_is_off() -> None:
    assert run(IMPORTED) == "[]"


def test_the_web_framework_traces_nothing_by_itself() -> None:
    assert run(GLOBAL_PROVIDER) == "200 0"


def test_a_missing_package_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(OptionError, match=r"medrestore\[otel\]"):
        tracing.Tracer()


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        ({"OTEL_TRACES_EXPORTER": "console,otlp"}, ["console", "otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "none"}, []),
    ],
)
def test_the_standard_variables_name_the_exporter(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.exporter_names() == names


def test_the_provider_is_made_by_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=radiology,site=north")
    provider = tracing.configured_provider()
    assert provider.resource.attributes["service.name"] == "radiology"
    assert provider.resource.attributes["site"] == "north"
    provider.shutdown()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    with pytest.raises(OptionError, match="carrier-pigeon"):
        tracing.configured_provider()
