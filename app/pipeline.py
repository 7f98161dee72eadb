"""The order of steps for one image: unit planes, noise estimate, tiles, restored image, evidence.

The service and the command line both come through here; they differ in the `Runner` they bring.
Frames are worked one by one, so that memory holds one frame of floats whatever the number of frames.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from app.consistency import Consistency, assert_consistent, consistency_of
from app.errors import OutOfMemory, RunFailed
from app.noise import (
    WHOLE_FRAME_PIXELS,
    Array,
    Change,
    NoiseFunction,
    Runner,
    colour_of,
    estimate,
    first_equal,
    given,
    pooled,
    quadratic_mean,
    rms,
    together,
    was_trained_on,
    was_trained_on_colour,
)
from app.offload import offload
from app.options import Options, check_options
from app.tiling import Tiling
from app.tracing import span
from models.bundle import Bundle, Manifest
from models.errors import ImageTooLarge
from models.imaging.correlation import NoiseCorrelation
from models.imaging.image import Derivation, Image, Limits, frame_of
from models.imaging.reduction import Agreement, agreement
from models.imaging.tiles import Span, TilePlan, cut_tile, kept, place
from models.imaging.values import from_unit, to_unit

LIMITS = Limits()
EXACT, FAST = "fp32", "bf16"  # number formats of the two modes


@dataclass(frozen=True)
class Evidence:
    """What was done to the values, in real-world units; None where the task measures no such thing."""

    unit: str
    noise_before: float | None = None  # RMS of the noise map that the network worked with
    noise_after: float | None = None  # RMS noise estimated on the restored frames
    noise_correlation: NoiseCorrelation | None = None  # before, where the model's estimator tells it
    removed_rms: float | None = None
    removed_max: float | None = None
    removed_correlation: tuple[float, float] | None = None  # of the change, with its neighbour across and down
    consistency: Consistency | None = None  # of the result, reduced again, with the image
    clipped: int = 0  # samples that had to be cut to the smallest or largest storable value
    in_trained_range: bool | None = None


@dataclass(frozen=True)
class Restoration:
    """A restored image and how it came about."""

    image: Image
    derivation: Derivation
    evidence: Evidence
    timings: Mapping[str, float]  # stage -> seconds


@dataclass
class Stopwatch:
    """Seconds by stage, summed over frames."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with span(stage):
                yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


@dataclass(frozen=True)
class Record:
    """What one frame's restoration measured; levels on the unit scale, changes in stored values."""

    clipped: int
    before: float = 0.0
    after: float = 0.0
    colour: NoiseCorrelation | None = None
    removed: Array = field(default_factory=lambda: np.zeros(3))  # see `Change.products`
    removed_max: float = 0.0
    agreement: Agreement | None = None  # of a super-resolved frame, reduced again


def choose_precision(image: Image, asked: str | None, fast_for_8_bit: bool) -> str:
    """EXACT or FAST: what was `asked` ("exact", "fast"), else fast for 8-bit images alone, and DICOM never."""
    fast = asked == "fast" or (asked is None and fast_for_8_bit and image.bits == 8 and image.format != "dicom")
    return FAST if fast else EXACT


def demand(image: Image, bundle: Bundle, window: int, tiling: Tiling | None = None) -> tuple[int, int, int]:
    """Items, pixels and bytes that one image has in the queue at most, with `window` tiles at one time."""
    rows, columns = image.pixels.shape[1:3]
    plan = (tiling or Tiling()).plan(bundle, rows, columns)
    tiles = min(window, plan.count * image.samples)
    frame = min(rows * columns, WHOLE_FRAME_PIXELS) * image.samples if bundle.manifest.task == "denoise" else 0
    pixels = max(tiles * plan.shape[0] * plan.shape[1], frame)
    return max(tiles, image.samples), pixels, 4 * pixels


class Frames(Protocol):
    """Where frames come from and where they go, one by one."""

    async def take(self, index: int) -> Image:
        """One frame as an image of its own."""

    async def put(self, index: int, frame: Image, record: Record) -> None:
        """The same frame restored, and what was measured on it. Called in the order of the frames."""


async def restore(image: Image, bundle: Bundle, options: Options, run: Runner, limits: Limits = LIMITS) -> Restoration:
    """Denoises or super-resolves an image with one bundle, which `run` runs.

    Raises OptionError for options that the task does not have, ImageTooLarge where the result would
    pass the limits, and whatever `run` raises.
    """
    check(image, bundle, options, limits)
    watch, frames = Stopwatch(), _Memory(image)
    records = await restore_frames(frames, range(image.frames), bundle, options, run, watch)
    assert frames.whole is not None  # a decoded image has at least one frame
    evidence = summarise(records, image, bundle)
    tiles = run.tiling.mark(bundle, image, run.precision)
    derivation = derive(bundle, options, run.backend, run.precision, evidence, tiles)
    return Restoration(frames.whole, derivation, evidence, dict(watch.seconds))


def check(image: Image, bundle: Bundle, options: Options, limits: Limits) -> None:
    """Raises OptionError for options that the task does not have, ImageTooLarge where the result passes the limits."""
    check_options(options, bundle)
    if image.pixels[..., 0].size * bundle.manifest.scale**2 > limits.pixels:
        raise ImageTooLarge(f"the result would have more than {limits.pixels} pixels")


async def restore_frames(
    frames: Frames, indices: Iterable[int], bundle: Bundle, options: Options, run: Runner, watch: Stopwatch
) -> list[Record]:
    """Restores frame after frame; gives what was measured on each.

    Raises RunFailed, Inconsistent at the first frame that the guard refuses, and whatever `run` raises.
    """
    step = _denoise if bundle.manifest.task == "denoise" else _superresolve
    records = []
    for index in indices:
        frame = await frames.take(index)
        try:
            restored, record = await step(frame, bundle, options, run, watch)
        except FloatingPointError as exc:
            raise RunFailed(f"{bundle.reference} gave values that are no numbers") from exc
        assert_consistent(record.agreement, options.min_consistency, index)
        await frames.put(index, restored, record)
        records.append(record)
    return records


class _Memory:
    """Frames of an image in memory, put together into another one."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.whole: Image | None = None

    async def take(self, index: int) -> Image:
        return frame_of(self._image, index)

    async def put(self, index: int, frame: Image, record: Record) -> None:
        """Makes the image of all frames at the first one."""
        if self.whole is None:
            count = self._image.frames
            padding = None if self._image.padding is None else np.zeros((count, *frame.pixels.shape[1:3]), bool)
            pixels = np.empty((count, *frame.pixels.shape[1:]), frame.pixels.dtype)
            self.whole = replace(frame, pixels=pixels, padding=padding)
        self.whole.pixels[index] = frame.pixels[0]
        if self.whole.padding is not None and frame.padding is not None:
            self.whole.padding[index] = frame.padding[0]


def measured(frame: Image) -> Array | None:
    """Mask (rows, columns) of one frame's measured pixels; None where all are."""
    return None if frame.padding is None else ~frame.padding[0]


async def _denoise(
    frame: Image, bundle: Bundle, options: Options, run: Runner, watch: Stopwatch
) -> tuple[Image, Record]:
    manifest, mask = bundle.manifest, measured(frame)
    with watch("prepare"):
        planes = (await offload(frame.pixels.size, to_unit, frame))[0]
    with watch("estimate"):
        parameters = await estimate(planes, run, mask)
        if options.sigma is not None:
            parameters = given(options.sigma / frame.values.real_per_unit, parameters, manifest)
    colour = colour_of(parameters, manifest)
    if options.strength == 0:
        level = await offload(planes.size, NoiseFunction.of(parameters, manifest).level, planes, mask)
        return frame, Record(0, level, level, colour)
    with watch("restore"):
        more = {"parameters": parameters[None], "strength": np.array([options.strength], np.float32)}
        answer = await _run_tiles(planes, more, bundle, run)
        del planes
    with watch("verify"):
        before = await offload(frame.pixels.size, rms, answer.pop("noise"), mask)
        function = NoiseFunction.of(await estimate(answer["restored"], run, mask), manifest)
    with watch("finish"):
        return await offload(frame.pixels.size, _finish, frame, answer["restored"], before, function, colour)


def _finish(
    frame: Image, unit: Array, before: float, after: NoiseFunction, colour: NoiseCorrelation | None
) -> tuple[Image, Record]:
    """Stored pixels from the network's answer, and what changed where pixels were measured."""
    mask = measured(frame)
    restored, clipped = from_unit(unit[None], frame)
    change = Change.between(frame.pixels[0], restored.pixels[0], mask)
    return restored, Record(clipped, before, after.level(unit, mask), colour, change.products, change.largest)


async def _superresolve(
    frame: Image, bundle: Bundle, options: Options, run: Runner, watch: Stopwatch
) -> tuple[Image, Record]:
    with watch("prepare"):
        planes = (await offload(frame.pixels.size, to_unit, frame))[0]
    with watch("restore"):
        answer = await _run_tiles(planes, {}, bundle, run)
        del planes
    with watch("finish"):
        scale = bundle.manifest.scale
        restored, clipped = await offload(answer["restored"].size, from_unit, answer["restored"][None], frame, scale)
        del answer
    with watch("verify"):
        found = await offload(restored.pixels.size, agreement, frame, restored, scale)
    return restored, Record(clipped, agreement=found)


async def _run_tiles(planes: Array, more: dict[str, Array], bundle: Bundle, run: Runner) -> dict[str, Array]:
    """Runs `restore` over planes (samples, rows, columns), in smaller tiles where those of first choice do not fit.

    Gives each output merged, scaled where the task scales.
    """
    while True:
        plan = run.tiling.plan(bundle, planes.shape[1], planes.shape[2], run.precision)
        try:
            return await _run_plan(planes, more, bundle.manifest.scale, run, plan)
        except OutOfMemory:
            run.tiling.shrink(bundle, plan, run.precision)


async def _run_plan(planes: Array, more: dict[str, Array], scale: int, run: Runner, plan: TilePlan) -> dict[str, Array]:
    """As many tiles at one time as the runner works; each is cut when its turn comes, and put in place at once."""
    whole: dict[str, Array] = {}
    tiles = iter(plan.spans)

    def take(answers: Sequence[Mapping[str, Array]], spans: tuple[Span, Span]) -> None:
        for index, answer in enumerate(answers):
            for name, values in answer.items():
                place(whole[name][index], *spans, scale)[...] = kept(values[0, 0], plan, *spans, scale)

    async def work() -> Mapping[str, Array]:
        for spans in tiles:
            tile = await offload(planes.size, cut_tile, planes, plan, *spans)
            first = first_equal(tile)
            distinct = sorted(set(first))
            found = await together([run("restore", {"image": tile[i][None, None], **more}) for i in distinct])
            for name in found[0].keys() - whole.keys():
                whole[name] = np.empty((len(planes), plan.rows * scale, plan.columns * scale), np.float32)
            await offload(planes.size * scale**2, take, [found[distinct.index(i)] for i in first], spans)
        return {}

    await together([work() for _ in range(min(plan.count, -(-run.window // len(planes))))])
    return whole


def summarise(records: Sequence[Record], image: Image, bundle: Bundle) -> Evidence:
    """What was measured on all frames together."""
    clipped, values = sum(record.clipped for record in records), image.values
    if bundle.manifest.task != "denoise":
        consistency = consistency_of([record.agreement for record in records], values)
        return Evidence(values.unit, consistency=consistency, clipped=clipped)
    before = quadratic_mean([record.before for record in records])
    colour = pooled([record.colour for record in records], [record.before**2 for record in records])
    power, across, down = np.mean([record.removed for record in records], axis=0).tolist()
    manifest = bundle.manifest
    return Evidence(
        values.unit,
        noise_before=before * values.real_per_unit,
        noise_after=quadratic_mean([record.after for record in records]) * values.real_per_unit,
        noise_correlation=colour,
        removed_rms=math.sqrt(power) * abs(values.slope),
        removed_max=max(record.removed_max for record in records) * abs(values.slope),
        removed_correlation=(across / power, down / power) if power else None,
        clipped=clipped,
        in_trained_range=was_trained_on(before, manifest) and (not colour or was_trained_on_colour(colour, manifest)),
    )


def derive(
    bundle: Bundle, options: Options, backend: str, precision: str, evidence: Evidence, tiles: str
) -> Derivation:
    """How the image came about, as far as files tell it; `tiles` is `Tiling.mark`."""
    manifest = bundle.manifest
    return Derivation(
        operation=manifest.task,
        scale=manifest.scale,
        model=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        backend=backend,
        precision=precision,
        options=_chosen(options, manifest),
        evidence=_written(evidence),
        tiles=tiles,
        adversarial=manifest.adversarial,
    )


def _chosen(options: Options, manifest: Manifest) -> dict[str, Any]:
    """The options that an object depends on. A guarded series is another one, for it lacks what was refused."""
    if manifest.task == "denoise":
        return {"strength": options.strength, "sigma": options.sigma}
    floor = options.min_consistency
    return {} if floor is None else {"min_consistency": f"{floor:g} dB"}


def _written(evidence: Evidence) -> dict[str, Any]:
    """As the derived object tells it: what was measured; correlations in words, since they have no unit."""
    facts = {name: value for name, value in vars(evidence).items() if value is not None}
    if colour := evidence.noise_correlation:
        facts["noise_correlation"] = _in_words(colour.x1, colour.y1)
    if evidence.removed_correlation:
        facts["removed_correlation"] = _in_words(*evidence.removed_correlation)
    if found := facts.pop("consistency", None):
        psnr = None if found.psnr is None else f"{found.psnr:.1f} dB"
        facts |= {"consistency_psnr": psnr, "consistency_rms": found.rms, "consistency_max": found.largest}
    return facts


def _in_words(across: float, down: float) -> str:
    return f"{across:.3g} across {down:.3g} down"
