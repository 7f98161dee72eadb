"""The noise of one frame: its level as a function of the signal, its correlation, and the call that estimates both."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from app.tiling import Tiling
from models.bundle import Manifest
from models.errors import BundleInvalid
from models.imaging.correlation import NoiseCorrelation
from models.imaging.image import ValueMap
from models.imaging.values import strips

Array = np.ndarray[Any, Any]
T = TypeVar("T")
NAMES = ("variance_slope", "variance_offset", "variance_floor")
COLOUR = ("correlation_across_1", "correlation_across_2", "correlation_down_1", "correlation_down_2")
CORRELATION_TOLERANCE = 0.1  # an estimate's own spread, and what a blind spot network stands
WHOLE_FRAME_PIXELS = 8 * 1024**2  # a larger frame is estimated from blocks, which bounds the memory
BLOCK = 1024
BLOCKS_PER_AXIS = 4  # 4 x 4 blocks of 1024 x 1024 cover a frame of 4096 x 4096


class Runner(Protocol):
    """Runs one graph of one bundle: the service's goes through the queue, the command line's does not."""

    @property
    def backend(self) -> str:
        """Runtime of the answers so far."""

    @property
    def precision(self) -> str:
        """Number format of the answers so far."""

    @property
    def window(self) -> int:
        """Calls that it works at one time; more are well met, but wait."""

    @property
    def tiling(self) -> Tiling:
        """Says which tiles to call it with."""

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """Takes and gives float32 arrays of leading dimension 1 by the names in `models.bundle`."""


@dataclass(frozen=True)
class NoiseFunction:
    """Noise variance at signal x: max(slope * x + offset, floor)."""

    slope: float
    offset: float
    floor: float

    @classmethod
    def of(cls, parameters: Array, manifest: Manifest) -> NoiseFunction:
        """From a parameter vector (P,) in the manifest's order. Raises BundleInvalid where one is missing."""
        named = dict(zip(manifest.parameters, parameters.tolist(), strict=True))
        if missing := [name for name in NAMES if name not in named]:
            raise BundleInvalid(f"{manifest.name}@{manifest.version} has no parameter {', '.join(missing)}")
        return cls(*(named[name] for name in NAMES))

    def level(self, signal: Array, measured: Array | None = None) -> float:
        """Root mean square noise over a signal (samples, rows, columns); `measured` (rows, columns) masks it."""
        return _root_mean(
            lambda strip: np.maximum(self.slope * signal[:, strip] + self.offset, max(self.floor, 0.0)),
            signal.shape,
            measured,
        )

    def in_real_units(self, values: ValueMap) -> NoiseFunction:
        """The same function of the real-world signal, in squared real-world units."""
        gain = values.slope / values.scale  # signed: real = (unit - offset) * gain + intercept
        at_zero = self.offset + self.slope * (values.offset - values.intercept / gain)
        return NoiseFunction(self.slope * gain, at_zero * gain**2, self.floor * gain**2)


def tells_colour(manifest: Manifest) -> bool:
    """Whether a bundle's estimator gives the noise's correlation, too."""
    return set(COLOUR) <= set(manifest.parameters)


def colour_of(parameters: Array, manifest: Manifest) -> NoiseCorrelation | None:
    """The noise's correlation out of a parameter vector (P,), None where the estimator says nothing of it."""
    named = dict(zip(manifest.parameters, np.clip(parameters, -1, 1).tolist(), strict=True))
    return NoiseCorrelation(*(named[name] for name in COLOUR)) if tells_colour(manifest) else None


def pooled(correlations: Sequence[NoiseCorrelation | None], weights: Sequence[float]) -> NoiseCorrelation | None:
    """Mean over frames, each by its weight; None where no frame with a weight has one."""
    found = [(c, weight) for c, weight in zip(correlations, weights, strict=True) if c is not None and weight > 0]
    if not found:
        return None
    lags = np.average([[c.x1, c.x2, c.y1, c.y2] for c, _ in found], axis=0, weights=[weight for _, weight in found])
    x1, x2, y1, y2 = lags.tolist()
    return NoiseCorrelation(x1, x2, y1, y2, sum(c.patches for c, _ in found))


def was_trained_on(level: float, manifest: Manifest) -> bool:
    """Whether a denoiser knows noise of this level on the unit scale."""
    low, high = manifest.trained_sigma
    return low <= level <= high


def was_trained_on_colour(correlation: NoiseCorrelation, manifest: Manifest) -> bool:
    """Whether a denoiser knows noise of this lag-1 correlation."""
    low, high = manifest.trained_correlation
    low, high = low - CORRELATION_TOLERANCE, high + CORRELATION_TOLERANCE
    return low <= correlation.x1 <= high and low <= correlation.y1 <= high


@dataclass(frozen=True)
class Change:
    """What differs between two frames of stored values (rows, columns, samples)."""

    products: Array  # (3,): mean product of a pixel's change with itself, its right and its lower neighbour's
    largest: float

    @classmethod
    def between(cls, before: Array, after: Array, measured: Array | None = None) -> Change:
        """`measured` (rows, columns) leaves out every pixel, and every pair with a pixel, that is not; 0 where
        nothing is left."""
        rows, columns, samples = before.shape
        sums, counts, largest = np.zeros(3), np.zeros(3), 0.0
        for strip in strips(rows, columns):
            height = strip.stop - strip.start
            wide = slice(strip.start, min(strip.stop + 1, rows))  # and the row below
            change = np.subtract(after[wide], before[wide], dtype=np.float64)
            kept = np.broadcast_to(True, change.shape[:2]) if measured is None else measured[wide]
            change = change if measured is None else np.where(kept[..., None], change, 0.0)
            own, own_kept = change[:height], kept[:height]
            pairs = [
                (own, own, own_kept),
                (own[:, :-1], own[:, 1:], own_kept[:, :-1] & own_kept[:, 1:]),
                (change[:-1], change[1:], kept[:-1] & kept[1:]),
            ]
            sums += [np.einsum("rcs,rcs->", a, b) for a, b, _ in pairs]  # without an array of products
            counts += [samples * np.count_nonzero(both) for _, _, both in pairs]
            largest = max(largest, float(np.abs(own).max(initial=0.0)))
        return cls(sums / np.maximum(counts, 1), largest)


def rms(values: Array, measured: Array | None = None) -> float:
    """Root mean square over (samples, rows, columns) where `measured` (rows, columns) is true; 0 where nothing is."""
    return _root_mean(lambda strip: np.square(values[:, strip]), values.shape, measured)


def quadratic_mean(levels: Sequence[float]) -> float:
    """Root mean square of the levels of several frames."""
    return float(np.sqrt(np.mean(np.square(levels))))


def _root_mean(squares: Callable[[slice], Array], shape: tuple[int, ...], measured: Array | None) -> float:
    """Square root of the mean over (samples, rows, columns), of which `squares` gives some rows at a time."""
    total, count = 0.0, 0
    for strip in strips(*shape[1:]):
        part = squares(strip)
        kept = part if measured is None else part[:, measured[strip]]
        total, count = total + float(np.sum(kept, dtype=np.float64)), count + kept.size
    return math.sqrt(total / count) if count else 0.0


def given(sigma_unit: float, estimated: Array, manifest: Manifest) -> Array:
    """The parameters (P,) with a constant level in place of the estimated one; other parameters stay."""
    level = dict(zip(NAMES, (0.0, sigma_unit**2, 0.0), strict=True))
    pairs = zip(manifest.parameters, estimated, strict=True)
    return np.array([level.get(name, value) for name, value in pairs], np.float32)


async def estimate(planes: Array, run: Runner, measured: Array | None = None) -> Array:
    """Parameters (P,), float32, common to the planes (samples, rows, columns) of one frame on the unit scale.

    Pixels that `measured` (rows, columns) leaves out are set to one value each: an estimator passes
    over what is constant, but would take a smooth filling for a part of the image without noise.
    Each distinct plane is estimated as a whole; the parameters are the mean over all planes. Above
    `WHOLE_FRAME_PIXELS` a plane is represented by a fixed grid of blocks, weighted by their share
    of pixels between the frame's extremes, since saturated background shows no noise.
    """
    if measured is not None:
        planes = np.where(measured, planes, planes[:, measured].mean(axis=1)[:, None, None] if measured.any() else 0)
    first = first_equal(planes)
    by_plane = {index: await _estimate_plane(planes[index], run) for index in sorted(set(first))}
    return np.asarray(np.mean([by_plane[index] for index in first], axis=0), np.float32)


async def _estimate_plane(plane: Array, run: Runner) -> Array:
    blocks = sample_blocks(plane)  # views, copied one by one on their way
    if len(blocks) == 1:
        return np.asarray((await run("estimate", {"image": plane[None, None]}))["parameters"][0])
    answers = await together([run("estimate", {"image": block[None, None]}) for block in blocks])
    low, high = plane.min(), plane.max()
    weights = np.array([np.mean((block > low) & (block < high)) for block in blocks])
    if not weights.any():
        weights[:] = 1.0
    return np.asarray(np.average([answer["parameters"][0] for answer in answers], axis=0, weights=weights))


def sample_blocks(plane: Array) -> list[Array]:
    """The plane itself, or a regular grid of blocks of a plane above `WHOLE_FRAME_PIXELS`."""
    if plane.size <= WHOLE_FRAME_PIXELS:
        return [plane]
    starts = [np.unique(np.linspace(0, max(side - BLOCK, 0), BLOCKS_PER_AXIS).astype(int)) for side in plane.shape]
    return [plane[r : r + BLOCK, c : c + BLOCK] for r in starts[0] for c in starts[1]]


def first_equal(planes: Array) -> list[int]:
    """Per plane, the index of the first plane with the same values: grey images stored as RGB are worked once,
    and their planes stay equal whatever the runtime's rounding."""
    return [next((j for j in range(i) if np.array_equal(planes[j], planes[i])), i) for i in range(len(planes))]


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure cancels the rest, so that nothing goes on unwanted."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
