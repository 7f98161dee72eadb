"""What is told of an answer beside the image: as JSON of a job, and as headers."""

from __future__ import annotations

import base64
from typing import Any

from app.pipeline import Evidence


def facts_of(
    evidence: Evidence,
    model: str,
    digest: str,
    adversarial: bool,
    backend: str,
    precision: str,
    lossy: bool,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    """The fields of `app.schemas.RestorationFacts`."""
    colour, consistency = evidence.noise_correlation, evidence.consistency
    return {
        "model": model,
        "model_digest": digest,
        "model_adversarial": adversarial,
        "backend": backend,
        "precision": precision,
        "noise_before": evidence.noise_before,
        "noise_after": evidence.noise_after,
        "noise_correlation": [colour.x1, colour.y1, colour.x2, colour.y2] if colour else None,
        "removed_rms": evidence.removed_rms,
        "removed_max": evidence.removed_max,
        "removed_correlation": list(evidence.removed_correlation) if evidence.removed_correlation else None,
        "in_trained_range": evidence.in_trained_range,
        "consistency_psnr": consistency.psnr if consistency else None,
        "consistency_rms": consistency.rms if consistency else None,
        "consistency_max": consistency.largest if consistency else None,
        "noise_unit": evidence.unit,
        "clip_count": evidence.clipped,
        "input_lossy": lossy,
        "input_notes": list(notes),
    }


def fact_headers(facts: dict[str, Any]) -> dict[str, str]:
    """The same as headers; what was not measured is left out, and so is what an earlier version did not tell."""
    headers = {
        "X-Model": facts["model"],
        "X-Model-Digest": facts["model_digest"],
        "X-Model-Adversarial": "true" if facts.get("model_adversarial") else None,
        "X-Backend": facts["backend"],
        "X-Precision": facts["precision"],
        "X-Noise-Before": _number(facts["noise_before"]),
        "X-Noise-After": _number(facts["noise_after"]),
        "X-Noise-Correlation": _numbers(facts["noise_correlation"]),
        "X-Removed-RMS": _number(facts["removed_rms"]),
        "X-Removed-Max": _number(facts["removed_max"]),
        "X-Removed-Correlation": _numbers(facts["removed_correlation"]),
        "X-In-Trained-Range": _truth(facts["in_trained_range"]),
        "X-Consistency-PSNR": _number(facts.get("consistency_psnr")),
        "X-Consistency-RMS": _number(facts.get("consistency_rms")),
        "X-Consistency-Max": _number(facts.get("consistency_max")),
        "X-Noise-Unit": _word(facts["noise_unit"]),
        "X-Clip-Count": str(facts["clip_count"]),
        "X-Input-Lossy": _truth(facts["input_lossy"]),
        "X-Input-Notes": "; ".join(facts["input_notes"]) or None,
    }
    return {name: value for name, value in headers.items() if value is not None}


def content_digest(sha256: bytes) -> str:
    """The digest of a body as a header (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def _truth(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _numbers(values: list[float] | None) -> str | None:
    return None if values is None else ", ".join(f"{value:.3f}" for value in values)


def _word(unit: str) -> str:
    """A unit out of a file, as far as a header may hold it (RFC 9110, section 5.5)."""
    return "".join(c for c in unit if " " <= c <= "~").strip() or "unnamed"
