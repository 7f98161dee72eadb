"""What a caller may choose about the restoration of an image, and what strict mode makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from models.bundle import Bundle
from models.errors import OptionError
from models.imaging.reduction import BEST_DB

STRENGTHS = (0.0, 1.5)


@dataclass(frozen=True)
class Options:
    """What a caller may choose; the first two of a denoising, the last of a super-resolution. Raises OptionError."""

    strength: float = 1.0  # 0 is the identity, 1 the trained amount
    sigma: float | None = None  # noise level in the image's real-world units, in place of the estimate
    min_consistency: float | None = None  # dB below which a super-resolved image is refused, see `app.consistency`

    def __post_init__(self) -> None:
        if not STRENGTHS[0] <= self.strength <= STRENGTHS[1]:
            raise OptionError(f"strength must lie between {STRENGTHS[0]} and {STRENGTHS[1]}")
        if self.sigma is not None and not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise OptionError("sigma must be a positive number of the image's own units")
        if self.min_consistency is not None and not 0 <= self.min_consistency <= BEST_DB:
            raise OptionError(f"min_consistency must lie between 0 and {BEST_DB:g} dB")


def guarded(options: Options, strict: bool, bundle: Bundle, otherwise: float) -> Options:
    """The options with what strict mode asks, where nothing else was asked: what the model promises of a healthy
    result, `otherwise` (dB) where it promises nothing. Raises OptionError for a denoising."""
    if strict and bundle.manifest.task == "denoise":
        raise OptionError("strict and min_consistency belong to superresolve; denoise takes neither")
    if not strict or options.min_consistency is not None:
        return options
    promised = bundle.manifest.consistency
    return replace(options, min_consistency=otherwise if promised is None else promised)


def check_options(options: Options, bundle: Bundle) -> None:
    """Raises OptionError for options that the task does not have."""
    manifest = bundle.manifest
    if manifest.task == "superresolve" and (options.strength, options.sigma) != (1.0, None):
        raise OptionError("strength and sigma belong to denoising; superresolve takes neither")
    if manifest.task == "denoise" and options.min_consistency is not None:
        raise OptionError("strict and min_consistency belong to superresolve; denoise takes neither")
