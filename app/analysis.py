"""The noise report of an image: level, noise function and correlation, and whether a model knows such noise."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from app.noise import Array, NoiseFunction, Runner, estimate, rms
from app.pipeline import frame_of, measured
from models.bundle import Bundle, Manifest
from models.errors import OptionError
from models.imaging.correlation import NoiseCorrelation, pooled_correlation
from models.imaging.image import Image
from models.imaging.values import to_unit

CORRELATION_TOLERANCE = 0.1  # the measurement's own spread, and what a blind spot network stands


@dataclass(frozen=True)
class FrameReport:
    """The noise of one frame, or of all; level and function in real-world units."""

    level: float
    function: NoiseFunction
    correlation: NoiseCorrelation | None  # None where no flat patch with noise was found
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

    Raises OptionError for a bundle of another task, and whatever `run` raises.
    """
    if bundle.manifest.task != "denoise":
        raise OptionError(f"{bundle.reference} does not denoise, so it estimates no noise")
    levels, functions, correlations = [], [], []
    for index in range(image.frames):
        frame = frame_of(image, index)
        planes = (await asyncio.to_thread(to_unit, frame))[0]
        function = NoiseFunction.of(await estimate(planes, run, measured(frame)), bundle.manifest)
        levels.append(await asyncio.to_thread(function.level, planes, measured(frame)))
        functions.append(function)
        correlations.append(await asyncio.to_thread(_correlate, planes, frame))
    made = zip(levels, functions, correlations, strict=True)
    frames = [_report(*facts, image, bundle.manifest) for facts in made]
    whole = _report(rms(np.array(levels)), _mean(functions), _pool(correlations), image, bundle.manifest)
    return NoiseReport(image.values.unit, whole, frames)


def _correlate(planes: Array, frame: Image) -> NoiseCorrelation | None:
    masks = None if frame.padding is None else [frame.padding[0]] * len(planes)
    return pooled_correlation(list(planes), masks)


def _mean(functions: list[NoiseFunction]) -> NoiseFunction:
    values = np.mean([[f.slope, f.offset, f.floor] for f in functions], axis=0)
    return NoiseFunction(*values.tolist())


def _pool(correlations: list[NoiseCorrelation | None]) -> NoiseCorrelation | None:
    """Mean over frames, each by the number of patches it rests on."""
    found = [c for c in correlations if c is not None]
    if not found:
        return None
    patches = [c.patches for c in found]
    x1, x2, y1, y2 = np.average([[c.x1, c.x2, c.y1, c.y2] for c in found], axis=0, weights=patches).tolist()
    return NoiseCorrelation(x1, x2, y1, y2, sum(patches))


def _report(
    level: float, function: NoiseFunction, correlation: NoiseCorrelation | None, image: Image, manifest: Manifest
) -> FrameReport:
    """One frame's report from figures on the unit scale."""
    low, high = manifest.trained_sigma
    return FrameReport(
        level * image.values.real_per_unit,
        function.in_real_units(image.values),
        correlation,
        low <= level <= high,
        None if correlation is None else _known(correlation, manifest),
    )


def _known(correlation: NoiseCorrelation, manifest: Manifest) -> bool:
    low, high = manifest.trained_correlation
    return all(
        low - CORRELATION_TOLERANCE <= lag <= high + CORRELATION_TOLERANCE for lag in (correlation.x1, correlation.y1)
    )
