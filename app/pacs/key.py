"""What a PACS job is to do, and the key by which the same work is known again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from app.options import Options


@dataclass(frozen=True)
class Order:
    """The parameters of a PACS job; everything in it decides what is made, and nothing else does."""

    pacs: str  # name in the settings
    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID of the source
    operation: str  # "denoise" or "superresolve"
    scale: int
    model: str  # name@version
    digest: str  # of the model
    strength: float
    sigma: float | None
    precision: str  # "exact" or "fast"
    min_consistency: float | None = None  # dB below which an instance is refused

    @property
    def options(self) -> Options:
        return Options(self.strength, self.sigma, self.min_consistency)

    @property
    def parameters(self) -> dict[str, Any]:
        """As the job's row has it."""
        return asdict(self)

    @property
    def content(self) -> dict[str, Any]:
        """What `key` is made of: the same model may have another name by now."""
        return {name: value for name, value in self.parameters.items() if name != "model"}

    @property
    def key(self) -> str:
        """SHA-256 of the content: PACS, study, series, operation, model digest, parameter digest.

        The line feed keeps it apart from any key that a caller can send in a header.
        """
        chosen: dict[str, Any] = {"strength": self.strength, "sigma": self.sigma, "precision": self.precision}
        if self.min_consistency is not None:  # others have the keys that they had before there was a guard
            chosen["min_consistency"] = self.min_consistency
        operation = f"{self.operation} x{self.scale}"
        facts = [self.pacs, self.study, self.series, operation, self.digest, _digest(chosen)]
        return "pacs\n" + _digest(facts)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
