"""The configuration of `medrestore train superresolve`: one section per stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.pipeline.preset import Presets, merge
from training.superresolution.audit import AuditConfig
from training.superresolution.degradation import LearningConfig
from training.superresolution.report import ReportConfig
from training.superresolution.restoration import RestoreConfig
from training.superresolution.variant import VariantConfig


@dataclass(frozen=True)
class SuperresolveConfig:
    """Everything that decides what a run produces, its images apart."""

    seed: int = 0
    audit: AuditConfig = field(default_factory=AuditConfig)
    degradation: LearningConfig = field(default_factory=LearningConfig)
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    adversarial: VariantConfig = field(default_factory=VariantConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


SUPERRESOLVE_PRESETS = Presets(SuperresolveConfig, "superresolve", "restore")


def for_scale(document: dict[str, Any], scale: int) -> dict[str, Any]:
    """A preset's tables with those on top that it has for this scale alone: `[x4.restore.fit]`."""
    own = {name: document.get(name, {}) for name in ("x2", "x4")}
    shared = {key: value for key, value in document.items() if key not in own}
    return merge(shared, own.get(f"x{scale}", {}))
