"""The noise report of an image: level, noise function and correlation, and whether a model knows such noise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.noise import (
    Array,
    NoiseFunction,
    Runner,
    colour_of,
    estimate,
    pooled,
    quadratic_mean,
    tells_colour,
    was_trained_on,
    was_trained_on_colour,
)
from app.pipeline import measured
from models.bundle import Bundle, Manifest
from models.errors import OptionError
from models.imaging.correlation import NoiseCorrelation, pooled_correlation
from models.imaging.image import Image, frame_of
from models.imaging.values import to_unit


@dataclass(frozen=True)
class FrameReport:
    """The noise of one frame, or of all; level and function in real-world units."""

    level: float
    function: NoiseFunction
    correlation: NoiseCorrelation | None  # None where there is no noise to tell it by
    level_in_range: bool
    correlation_in_range: bool | None


@dataclass(frozen=True)
class NoiseReport:
    """The noise of an image, pooled and by frame."""

    unit: str
    whole: FrameReport
    frames: list[FrameReport]


async def analyse(image: Image, bundle: Bundle, run: Runner) -> NoiseReport:
    """Measures the noise of every frame with a denoising bundle's estimator, which `run` runs.

    The correlation is the estimator's too where it gives one, else measured on flat patches. Raises
    OptionError for a bundle of another task, and whatever `run` raises.
    """
    if bundle.manifest.task != "denoise":
        raise OptionError(f"{bundle.reference} does not denoise, so it estimates no noise")
    found = [await _measure(frame_of(image, index), bundle.manifest, run) for index in range(image.frames)]
    frames = [_report(*facts, image, bundle.manifest) for facts in found]
    levels, functions, correlations = zip(*found, strict=True)
    pool = pooled(correlations, [_weight(c, level) for level, _, c in found])
    whole = _report(quadratic_mean(levels), _mean(functions), pool, image, bundle.manifest)
    return NoiseReport(image.values.unit, whole, frames)


async def _measure(
    frame: Image, manifest: Manifest, run: Runner
) -> tuple[float, NoiseFunction, NoiseCorrelation | None]:
    """Level, function and correlation of one frame, on the unit scale."""
    planes = (await asyncio.to_thread(to_unit, frame))[0]
    parameters = await estimate(planes, run, measured(frame))
    function = NoiseFunction.of(parameters, manifest)
    level = await asyncio.to_thread(function.level, planes, measured(frame))
    if tells_colour(manifest):
        return level, function, colour_of(parameters, manifest) if level else None
    return level, function, await asyncio.to_thread(_correlate, planes, frame)


def _correlate(planes: Array, frame: Image) -> NoiseCorrelation | None:
    masks = None if frame.padding is None else [frame.padding[0]] * len(planes)
    return pooled_correlation(list(planes), masks)


def _weight(correlation: NoiseCorrelation | None, level: float) -> float:
    """Of a frame among others: the patches that were measured, or the power of the noise that was estimated."""
    return float(correlation.patches or level**2) if correlation else 0.0


def _mean(functions: Sequence[NoiseFunction]) -> NoiseFunction:
    values = np.mean([[f.slope, f.offset, f.floor] for f in functions], axis=0)
    return NoiseFunction(*values.tolist())


def _report(
    level: float, function: NoiseFunction, correlation: NoiseCorrelation | None, image: Image, manifest: Manifest
) -> FrameReport:
    """One frame's report from figures on the unit scale."""
    return FrameReport(
        level * image.values.real_per_unit,
        function.in_real_units(image.values),
        correlation,
        was_trained_on(level, manifest),
        None if correlation is None else was_trained_on_colour(correlation, manifest),
    )
