"""The configuration of a pipeline run: one section per stage, read from a preset and overridden key by key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.pipeline.audit import AuditConfig
from training.pipeline.learner import PreliminaryConfig
from training.pipeline.preset import Presets, merge
from training.pipeline.profound import ProfoundConfig
from training.pipeline.record import PIPELINE
from training.pipeline.synthesis import SynthesisConfig
from training.report.config import ReportConfig


@dataclass(frozen=True)
class PipelineConfig:
    """Everything that decides what a run produces, its images apart."""

    seed: int = 0
    audit: AuditConfig = field(default_factory=AuditConfig)
    preliminary: PreliminaryConfig = field(default_factory=PreliminaryConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    profound: ProfoundConfig = field(default_factory=ProfoundConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


__all__ = ["PIPELINE_PRESETS", "PipelineConfig", "from_record", "merge", "read_pipeline_config", "read_run_config"]

PIPELINE_PRESETS = Presets(PipelineConfig, "pipeline", "profound")


def from_record(record: dict[str, Any], overrides: Iterable[str] = ()) -> PipelineConfig:
    """The configuration of a document that may leave anything out. Raises ValueError naming the key that is wrong."""
    return PIPELINE_PRESETS.from_record(record, overrides)


def read_pipeline_config(path: Path, overrides: Iterable[str] = ()) -> PipelineConfig:
    """A preset with overrides on top. Raises ValueError naming the key that is wrong."""
    return PIPELINE_PRESETS.read(path, overrides)


def read_run_config(out: Path) -> PipelineConfig:
    """The configuration that a run was made with. Raises FileNotFoundError where no run is."""
    return from_record(json.loads((out / PIPELINE).read_text(encoding="utf-8"))["config"])
