"""The configuration of a pipeline run: one section per stage, read from a preset and overridden key by key."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.config import build, parse_override
from training.pipeline.audit import AuditConfig
from training.pipeline.learner import PreliminaryConfig
from training.pipeline.profound import ProfoundConfig
from training.pipeline.record import PIPELINE
from training.pipeline.synthesis import SynthesisConfig
from training.report.config import ReportConfig

WHOLE = "options"  # tables of this name are a network's own and replace the default's as a whole


@dataclass(frozen=True)
class PipelineConfig:
    """Everything that decides what a run produces, its images apart."""

    seed: int = 0
    audit: AuditConfig = field(default_factory=AuditConfig)
    preliminary: PreliminaryConfig = field(default_factory=PreliminaryConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    profound: ProfoundConfig = field(default_factory=ProfoundConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The base with every key of the change, table by table."""
    merged = dict(base)
    for key, value in change.items():
        before = base.get(key)
        nested = isinstance(value, dict) and isinstance(before, dict) and key != WHOLE
        merged[key] = merge(before, value) if nested else value
    return merged


def override(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The document with `KEY=VALUE` texts on top. Raises ValueError for a text that is none."""
    for text in overrides:
        keys, value = parse_override(text)
        for key in reversed(keys):
            value = {key: value}
        raw = merge(raw, value)
    return raw


def from_record(record: dict[str, Any], overrides: Iterable[str] = ()) -> PipelineConfig:
    """The configuration of a document that may leave anything out. Raises ValueError naming the key that is wrong."""
    defaults = json.loads(json.dumps(dataclasses.asdict(PipelineConfig())))
    return build(PipelineConfig, override(merge(defaults, record), overrides), "pipeline")


def read_pipeline_config(path: Path, overrides: Iterable[str] = ()) -> PipelineConfig:
    """A preset with overrides on top. Raises ValueError naming the key that is wrong."""
    return from_record(read_document(path), overrides)


def read_run_config(out: Path) -> PipelineConfig:
    """The configuration that a run was made with. Raises FileNotFoundError where no run is."""
    return from_record(json.loads((out / PIPELINE).read_text(encoding="utf-8"))["config"])


def read_document(path: Path) -> dict[str, Any]:
    """A preset's tables; `extends = "cpu.toml"`, a file beside it, gives those that it leaves out."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error
    base = document.pop("extends", "")
    return merge(read_document(path.parent / base), document) if base else document
