"""Is the noise that is learned the noise that is there? Known noise on nearly clean medical images, learned back.

    python -m training.noise.study --data DATA --out OUT --preset smoke

Writes folders of noisy images (white, and with the noise colours measured on real CT, X-ray and MR folders), runs the
audit, stage 1 and stage 2 on them as a user would, and sets what was learned beside what is true: `OUT/study.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from training.data.noise import LAGS, Kernel, NoiseLaw, Plane, add_noise
from training.data.source import area_reduce, list_images, read_plane
from training.noise.correlation import REACH, measure_correlation
from training.noise.population import SetPopulation, read_population
from training.noise.spectrum import correlation_of_kernel, kernel_of_correlation
from training.pipeline import audit, preliminary, synthesis
from training.pipeline.config import PipelineConfig, read_pipeline_config
from training.pipeline.intake import SetRule
from training.pipeline.photograph import own_noise
from training.pipeline.record import Audit, NoiseRow, read_audit, read_table, write_json, write_plane
from training.seeds import sample_generator

CONFIGS = Path(__file__).parents[1] / "configs"
REDUCE = 2  # of the clean images: averages their own noise away
STREAM = 70_000_000


@dataclass(frozen=True)
class Folder:
    """Images below the data folder, and the stored values that map to 0 and 1 (None: percentiles of each image)."""

    path: str
    window: tuple[float, float] | None = None


CLEAN = {
    "xray": Folder("medical/xray/nih_cxr_crop"),
    "mr": Folder("medical/mr/uih_t1_gre"),
    "ct": Folder("medical/ct/ny_sbu", (864.0, 1264.0)),
}
COLOURS = {
    "ct": Folder("medical/ct/lidc0314_1mm", (864.0, 1264.0)),
    "xray": Folder("medical/xray/actualmed_native_crop"),
    "mr": Folder("medical/mr/uih_dti"),
}


@dataclass(frozen=True)
class StudyConfig:
    """Which laws are put on how many images."""

    images: int = 8  # of one set
    lowest: float = 0.015  # level at mid-grey, unit scale; log-uniform ...
    highest: float = 0.08
    poisson_share: float = 0.6  # largest share of the variance at mid-grey that grows with the signal


@dataclass(frozen=True)
class Truth:
    """The noise that was put on one image; `level` is at its median signal, its own noise left out."""

    source: str
    set: str
    a: float
    b: float
    level: float
    own: float  # level of what noise the clean image had


def read(data: Path, folder: Folder) -> list[Plane]:
    """The folder's images on the unit scale."""
    planes = []
    for path in list_images(data / folder.path):
        plane = read_plane(path)[0].astype(np.float32)
        low, high = folder.window or tuple(np.percentile(plane, [0.5, 99.5]))
        planes.append((plane - np.float32(low)) / np.float32(max(high - low, 1e-6)))
    return planes


def measured_kernels(data: Path) -> dict[str, Kernel | None]:
    """The noise colours of the real folders, and white."""
    kernels: dict[str, Kernel | None] = {"white": None}
    for name, folder in COLOURS.items():
        if (correlation := measure_correlation(read(data, folder))) is not None:
            kernels[name] = kernel_of_correlation(correlation)
    return kernels


def write_noisy(
    data: Path, folder: Path, kernels: dict[str, Kernel | None], config: StudyConfig, seed: int
) -> list[Truth]:
    """Writes a subfolder of noisy float images for every clean folder and colour, and says what is on them."""
    truths = []
    for place, clean in CLEAN.items():
        planes = [np.clip(area_reduce(plane, REDUCE), 0, 1) for plane in read(data, clean)]
        chosen = [planes[i] for i in np.linspace(0, len(planes) - 1, min(config.images, len(planes))).astype(int)]
        for colour, kernel in kernels.items():
            for i, plane in enumerate(chosen):
                rng = sample_generator(seed + STREAM, len(truths), i)
                law = replace(draw_law(config, rng), kernel=kernel)
                name = f"{place}-{colour}/{'abcdefghijklmnopqrstuvwxyz'[i % 26]}{i}.npy"
                write_plane(folder / name, add_noise(plane, law, rng))
                level = float(np.sqrt(law.slope * np.median(plane) + law.offset))
                truths.append(Truth(name, f"{place}-{colour}", law.slope, law.offset, level, own_noise(plane)))
    return truths


def draw_law(config: StudyConfig, rng: np.random.Generator) -> NoiseLaw:
    """White Poisson-Gaussian noise of a level within the study's range."""
    variance = float(np.exp(rng.uniform(np.log(config.lowest), np.log(config.highest)))) ** 2
    share = rng.uniform(0.0, config.poisson_share)
    return NoiseLaw(2 * share * variance, (1 - share) * variance)


def learn(out: Path, noisy: Path, clean: Path, config: PipelineConfig) -> None:
    """Stages 0 to 2."""
    rules = (SetRule("*", window=(0.0, 1.0)),)
    audit.run(out, replace(config.audit, rules=rules, test_share=0.0), noisy=noisy, clean=clean, seed=config.seed)
    preliminary.run(out, config.preliminary, seed=config.seed, accelerator="cpu", threads=1, workers=0)
    synthesis.run(out, config.synthesis, seed=config.seed)


def compare(out: Path, truths: Sequence[Truth], kernels: dict[str, Kernel | None]) -> list[dict[str, Any]]:
    """One row per set: true beside learned level, law and correlation."""
    found, rows = read_audit(out), {row.id: row for row in read_table(out)}
    by_source = {image.source: rows[image.id] for image in found.images if image.id in rows}
    members = {member.name: member for member in read_population(out / synthesis.POPULATION).sets}
    table = []
    for name in dict.fromkeys(truth.set for truth in truths):
        pairs = [(t, by_source[t.source]) for t in truths if t.set == name and t.source in by_source]
        table.append(compare_set(name, pairs, members[name], found, kernels[name.split("-")[1]]))
    return table


def compare_set(
    name: str, pairs: Sequence[tuple[Truth, NoiseRow]], member: SetPopulation, found: Audit, kernel: Kernel | None
) -> dict[str, Any]:
    """The row of one set; ratios are learned over true, the median over the images and the middle 80 %."""
    true = np.array([[np.hypot(t.level, t.own), t.a, t.b] for t, _ in pairs])
    learned = np.array([[row.level, row.a, row.b] for _, row in pairs])
    middle = np.sqrt(true[:, 1] * 0.5 + true[:, 2] + np.array([t.own for t, _ in pairs]) ** 2)
    rng = np.random.default_rng(0)
    drawn = np.exp([member.density.draw(rng) for _ in range(1000)])
    levels = np.sqrt(drawn[:, 0] * 0.5 + drawn[:, 1])
    correlations = {
        "true": correlation_of_kernel(kernel),
        "audit": np.array(found.sets[name].correlation),
        "learned": correlation_of_kernel(member.kernels[0] if member.kernels else None),
    }
    near = slice(REACH - 2, REACH + 3)
    return {
        "set": name,
        "images": len(pairs),
        "level_true": round(float(np.median(true[:, 0])), 5),
        "stage1_level_ratio": spread(learned[:, 0] / true[:, 0]),
        "population_level_ratio": round(float(np.median(levels) / np.median(middle)), 3),
        "a_ratio": spread(learned[:, 1] / np.maximum(true[:, 1], 1e-9)),
        "b_ratio": spread(learned[:, 2] / true[:, 2]),
        "level_ks": round(float(ks_2samp(middle, levels).statistic), 3),
        **{key: [round(float(c[REACH + d, REACH + a]), 3) for d, a in LAGS] for key, c in correlations.items()},
        "audit_error": worst(correlations["audit"][near, near], correlations["true"][near, near]),
        "learned_error": worst(correlations["learned"][near, near], correlations["true"][near, near]),
        "stride": found.sets[name].stride,
    }


def spread(ratios: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in np.quantile(ratios, [0.5, 0.1, 0.9])]


def worst(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    return round(float(np.abs(found - true).max()), 3)


def study(data: Path, out: Path, config: PipelineConfig, laws: StudyConfig) -> list[dict[str, Any]]:
    """Runs the study below `out` and returns its table; a second call resumes the stages."""
    kernels = measured_kernels(data)
    truths = write_noisy(data, out / "noisy", kernels, laws, config.seed)
    learn(out / "run", out / "noisy", data / "natural" / "skimage", config)
    table = compare(out / "run", truths, kernels)
    write_json(out / "study.json", {"laws": asdict(laws), "truth": [asdict(truth) for truth in truths], "table": table})
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of shared data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="smoke", help="of the pipeline: stage 1's size and steps")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides the preset")
    parser.add_argument("--images", type=int, default=StudyConfig.images)
    options = parser.parse_args(argv)
    config = read_pipeline_config(CONFIGS / f"pipeline-{options.preset}.toml", options.set)
    for row in study(options.data, options.out, config, StudyConfig(images=options.images)):
        print(row)


if __name__ == "__main__":
    main()
