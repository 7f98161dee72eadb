"""Does the learned degradation find a known one? Photographs, and others degraded in a known way: unpaired.

Part of `medrestore evaluate degradation`; writes for every case and seed the draws as SVG and PNG. Cases on medical
folders have no truth: their rows say what was learned, and what of the noise can be measured without learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray

from training.data.noise import Plane, correlations, kernel_of_amplitude
from training.data.source import Source, SourceConfig
from training.degradation.config import PdmConfig
from training.degradation.figure import draws_figure, draws_png
from training.degradation.generator import apply_kernels
from training.degradation.known import KnownDegradation
from training.degradation.learned import LearnedDegradation
from training.degradation.learning import learn_degradation
from training.degradation.measure import second_moments
from training.degradation.population import measure_noise
from training.pipeline.record import write_plane
from training.seeds import sample_generator

Array = NDArray[np.float64]

PHOTOGRAPHS = SourceConfig("photographs", "natural/bsds500", include="*.jpg")
STREAM = 99_000_000
LEVEL = 5.0 / 255


def coloured() -> NDArray[np.float32]:
    """A kernel of noise that is blurred more across than down: correlations of 0.34 and 0.60 at one pixel."""
    down, across = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")
    return kernel_of_amplitude(np.exp(-2 * np.pi**2 * ((0.45 * down) ** 2 + (0.7 * across) ** 2)))


KNOWN = {
    "x2": KnownDegradation(2, (1.2, 1.2), "sampling", LEVEL),
    "x2-area": KnownDegradation(2, (1.2, 1.2), "area", LEVEL),
    "x2-coloured": KnownDegradation(2, (2.0, 1.2), "sampling", 8.0 / 255, coloured()),
    "x4": KnownDegradation(4, (2.4, 2.4), "sampling", LEVEL),
    "x4-bicubic": KnownDegradation(4, (2.0, 2.0), "bicubic", 3.0 / 255),
}
REAL = {
    "ct": (
        SourceConfig("high", "medical/ct/lidc0314_1mm", low=864.0, high=1264.0),
        SourceConfig("low", "medical/ct/ny_sbu", include="*axial*", low=864.0, high=1264.0),
    ),
    "mr": (
        SourceConfig("high", "medical/mr/uih_t1_gre", percentile=99.5),
        SourceConfig("low", "medical/mr/siemens_t1_fl2d", percentile=99.5),
    ),
}
CASES = (*KNOWN, *REAL)


@dataclass(frozen=True, eq=False)
class Sets:
    """Unpaired planes of one case."""

    high: list[Plane]
    low: list[Plane]
    scale: int


def known_sets(data: Path, known: KnownDegradation, count: int, seed: int) -> Sets:
    """`count` photographs as they are and as many others degraded; which ones depends on the seed."""
    source, rng = Source(PHOTOGRAPHS, data), sample_generator(seed + STREAM, 0, 0)
    order = rng.permutation(len(source))
    planes = [source.plane(int(i), rng) for i in order[: 2 * count]]
    half = len(planes) // 2
    return Sets(planes[:half], [known.degrade(plane, rng) for plane in planes[half:]], known.scale)


def real_sets(data: Path, high: SourceConfig, low: SourceConfig) -> Sets:
    """Two medical folders as they are."""
    rng = np.random.default_rng(0)
    sources = Source(high, data), Source(low, data)
    sharp, degraded = ([source.plane(i, rng) for i in range(len(source))] for source in sources)
    return Sets(sharp, degraded, 2)


def write_sets(folder: Path, sets: Sets) -> tuple[list[Path], list[Path]]:
    """The planes as .npy files."""
    paths = []
    for name, planes in (("high", sets.high), ("low", sets.low)):
        paths.append([folder / name / f"{number:04}.npy" for number in range(len(planes))])
        for path, plane in zip(paths[-1], planes, strict=True):
            write_plane(path, plane)
    return paths[0], paths[1]


def recover(data: Path, out: Path, case: str, seed: int, count: int, config: PdmConfig) -> dict[str, Any]:
    """Learns one case below `out`, or goes on with it; returns its row of the table. Raises ValueError for no case."""
    if case not in CASES:
        raise ValueError(f"--cases {case}: there are {', '.join(CASES)}")
    known, folder = KNOWN.get(case), out / f"{case}-{seed}"
    sets = known_sets(data, known, count, seed) if known else real_sets(data, *REAL[case])
    high, low = write_sets(folder, sets)
    fabric = Fabric(accelerator="cpu", devices=1, precision=config.fit.precision)  # type: ignore[arg-type]
    digest = f"{case} {seed} {count} {config}"
    learned = learn_degradation(high, low, sets.scale, config, seed, folder / "learned", digest, fabric, workers=0)
    truth = None if known is None else known.kernel
    (folder / "draws.svg").write_text(draws_figure(learned, sets.high, sets.low, seed, truth), encoding="utf-8")
    (folder / "draws.png").write_bytes(draws_png(learned, sets.high, sets.low, seed, truth))
    head = {"case": case, "seed": seed, "shift": image_shift(learned, sets.high)}
    return head | (compare(learned, known) if known else describe(learned, sets.low))


def compare(learned: LearnedDegradation, known: KnownDegradation) -> dict[str, Any]:
    """Learned over true."""
    facts, covariance = learned.facts, second_moments(known.kernel)
    found = np.array(facts["covariance"])
    true_lag = correlations(known.colour)[:2]
    return {
        "moment": facts["moment"],
        "moment_ratio": facts["moment"] / float(np.trace(covariance) / 2),
        "down_ratio": float(found[0, 0] / covariance[0, 0]),
        "across_ratio": float(found[1, 1] / covariance[1, 1]),
        "noise_255": 255 * facts["noise"],
        "noise_ratio": facts["noise"] / known.noise,
        "lag1_error": float(np.abs(np.array(facts["lag1"]) - true_lag).max()),
        "moment_spread": facts["moment_spread"],
    }


def describe(learned: LearnedDegradation, low: Sequence[Plane]) -> dict[str, Any]:
    """What was learned, and the noise that the low-resolution images' quiet patches show."""
    noise, facts = measure_noise(low, all(float(plane.min()) >= 0 for plane in low)), learned.facts
    return {
        "moment": facts["moment"],
        "noise_255": 255 * facts["noise"],
        "lag1_down": facts["lag1"][0],
        "lag1_across": facts["lag1"][1],
        "measured_255": None if noise is None else float(255 * np.median(noise.levels)),
        "moment_spread": facts["moment_spread"],
    }


@torch.no_grad()
def image_shift(learned: LearnedDegradation, high: Sequence[Plane]) -> float:
    """Largest displacement, in high-resolution pixels, of images reduced by the learned kernels against block means.

    Least squares of the difference over the image's gradient; 16 draws, the mean of each axis.
    """
    shifts, scale = [], learned.scale
    for number in range(16):
        rng = sample_generator(STREAM, 1, number)
        plane = high[int(rng.integers(len(high)))]
        rows, columns = (side // scale * scale for side in plane.shape)
        image = torch.from_numpy(np.array(plane[:rows, :columns]))[None, None]
        kernel = learned.generator.kernel(torch.from_numpy(rng.standard_normal((1, 3), dtype=np.float32)))[0]
        block = torch.full((1, scale, scale), 1 / scale**2)
        made, plain = (apply_kernels(image, each, scale)[0, 0].double().numpy() for each in (kernel, block))
        slopes = [slope[8:-8, 8:-8].ravel() for slope in np.gradient(plain)]
        difference = (plain - made)[8:-8, 8:-8].ravel()
        shifts.append(np.linalg.lstsq(np.stack(slopes, axis=1), difference, rcond=None)[0] * scale)
    return float(np.abs(np.mean(shifts, axis=0)).max())


def recovery_table(
    data: Path, out: Path, cases: Sequence[str], seeds: Sequence[int], count: int, steps: int
) -> list[dict[str, Any]]:
    """One row per case and seed; `steps` 0 leaves their number to the configuration."""
    config = PdmConfig()
    if steps:
        config = replace(config, fit=replace(config.fit, steps=steps, hold=min(config.fit.hold, steps // 3)))
    return [recover(data, out, case, seed, count, config) for case in cases for seed in seeds]
