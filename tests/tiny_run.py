"""A run folder as the four training stages leave it, made in a second: synthetic images, untrained weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from training.config import Fit, TrainConfig
from training.data.noise import Kernel, NoiseLaw, Plane, add_noise, correlations, kernel_correlation
from training.data.source import SourceConfig
from training.noise.agreement import describe_fit
from training.noise.mixture import Mixture
from training.noise.population import LearnedPopulation, SetPopulation, write_population
from training.noise.spectrum import correlation_of_kernel
from training.pipeline.record import (
    PIPELINE,
    PRELIMINARY_IMAGES,
    Audit,
    CleanImage,
    ImageSet,
    NoiseRow,
    NoisyImage,
    Refusal,
    write_audit,
    write_json,
    write_plane,
    write_table,
)
from training.pipeline.stage import INPUTS, STAGES, Fingerprint, content_digest, finish, provenance
from training.train import RUN, WEIGHTS, build_graph

BOX = (np.outer([1, 2, 1], [1, 2, 1]) / 6).astype(np.float32)  # a kernel (3, 3) of unit energy
SETS: dict[str, tuple[str, Kernel | None]] = {"ct/abdomen": ("CT", BOX), "oct/retina": ("OCT", None)}
LEVEL = 0.05
SECRET = "MUELLER_ANNA_1961"  # stands for what a hospital's file names give away
CONFIG = TrainConfig(
    name="denoise",
    task="denoise",
    summary="test",
    restore=Fit("noise-map-unet", {"channels": [8, 8, 16], "blocks": [1, 1, 1, 1, 1]}),
    estimate=Fit("noise-level", {"channels": 8, "depth": 2}),
    sources=(SourceConfig("clean", "clean"),),
    tiles=(64, 128),
)


def scene(seed: int, rows: int = 96, columns: int = 112) -> Plane:
    """A smooth plane (rows, columns) with a disc: structure, and flat regions."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    plane = 0.45 + 0.1 * np.sin(x / rng.uniform(15, 40)) * np.cos(y / rng.uniform(15, 40))
    return (plane + 0.25 * (np.hypot(y - rows / 2, x - columns / 2) < rng.uniform(12, 30))).astype(np.float32)


def write_noisy(out: Path, number: int, name: str) -> tuple[NoisyImage, NoiseRow]:
    modality, kernel = SETS[name]
    clean = scene(number)
    noisy = add_noise(clean, NoiseLaw(0.0, LEVEL**2, kernel), np.random.default_rng(number + 100))
    id = f"n{number:06}"
    write_plane(out / "audit" / "noisy" / f"{id}.npy", noisy)
    write_plane(out / PRELIMINARY_IMAGES / f"{id}.npy", clean)
    image = NoisyImage(
        id=id,
        file=f"audit/noisy/{id}.npy",
        sha256="0" * 64,
        source=f"{SECRET}/{number}.dcm",
        set=name,
        modality=modality,
        group=f"g{number % 3}",
        split="test" if number % 3 == 0 else "train",
        rows=noisy.shape[0],
        columns=noisy.shape[1],
        low=-160.0 if modality == "CT" else 0.0,
        high=240.0 if modality == "CT" else 255.0,
    )
    return image, NoiseRow(id, name, 0.0, LEVEL**2, LEVEL, 0.0, LEVEL**2, LEVEL, True, 0.02, 0.5)


def image_set(name: str, images: int) -> ImageSet:
    modality, kernel = SETS[name]
    lags = range(-5, 6)
    correlation = [
        [float(down == across == 0) if kernel is None else kernel_correlation(kernel, *sorted_lag(down, across))
         for across in lags]
        for down in lags
    ]  # fmt: skip
    lag1 = (correlation[6][5], correlation[5][6])
    low, high = (-160.0, 240.0) if modality == "CT" else (0.0, 255.0)
    return ImageSet(modality, images, low, high, correlation, lag1, 3 if kernel is not None else 1)


def sorted_lag(down: int, across: int) -> tuple[int, int]:
    """The same lag with `across` not negative."""
    return (down, across) if across >= 0 else (-down, -across)


def write_stages(out: Path, images: int = 6) -> Path:
    """The four stages below `out`, marked as done; `images` of each set."""
    names = [name for name in SETS for _ in range(images)]
    noisy, rows = zip(*(write_noisy(out, number, name) for number, name in enumerate(names)), strict=True)
    clean = []
    for number in range(4):
        id = f"c{number:06}"
        write_plane(out / "audit" / "clean" / f"{id}.npy", scene(number + 50))
        split = "test" if number < 2 else "train"
        clean.append(CleanImage(id, f"audit/clean/{id}.npy", "1" * 64, f"{number}.png", split))
    sets = {name: image_set(name, images) for name in SETS}
    refused = (Refusal(f"{SECRET}/broken.dcm", "not an image"), Refusal(f"{SECRET}/colour.png", "constant"))
    write_audit(out, Audit(noisy, tuple(clean), refused, sets, ("few images",)))
    write_table(out, list(rows))
    population = LearnedPopulation(tuple(map(set_population, SETS)))
    write_population(out / "synthesis" / "population.json", population)
    laws = {name: [(row.a, row.b) for row in rows if row.set == name] for name in SETS}
    colours = {name: [correlation_of_kernel(kernel)] for name, (_, kernel) in SETS.items()}
    write_json(out / "synthesis" / "synthesis.json", describe_fit(population, laws, colours, 50, 0))
    write_json(out / "synthesis" / "laws.json", {row.id: {"parameters": law_of(row), "trusted": True} for row in rows})
    write_profound(out / "profound", CONFIG)
    for stage in STAGES[:-1]:
        mark_done(out, stage)
    config = {"seed": 0, "audit": {"include": [SECRET], "smallest": 64}, "report": {"scores": f"/{SECRET}"}}
    folders = {"noisy": f"/{SECRET}/noisy", "clean": f"/{SECRET}/clean"}
    write_json(out / PIPELINE, {"preset": "smoke", "seed": 0, "config": config, "folders": folders, **provenance()})
    return out


def law_of(row: NoiseRow) -> list[float]:
    """What a denoiser is told of an image's noise."""
    return [row.a, row.b, row.b / 16, *correlations(SETS[row.set][1])]


def mark_done(out: Path, stage: str) -> None:
    """Marks a stage as finished, made from what is there now."""
    inputs = {name: content_digest(out / name) for name in INPUTS[stage]}
    made = Fingerprint({}, 0, inputs | {"noisy": "a" * 64, "clean": "b" * 64})
    finish(out, stage, made, {**provenance(), "seconds": 1.0, "processes": 1})


def set_population(name: str) -> SetPopulation:
    """Images of about one level."""
    modality, kernel = SETS[name]
    level = np.log([LEVEL**2 / 10, LEVEL**2])
    density = Mixture(np.ones(1), level[None], np.full((1, 2, 2), 0.01) + 0.01 * np.eye(2))
    return SetPopulation(
        name, modality, 1.0, False, density, level - 0.3, level + 0.3, () if kernel is None else (kernel,)
    )


def write_profound(run: Path, config: TrainConfig) -> None:
    """A run as `medrestore train` leaves it, with the weights of step 0 and a short log."""
    for graph, fit in config.fits.items():
        (run / graph).mkdir(parents=True)
        torch.save(build_graph(config, graph, fit).state_dict(), run / graph / WEIGHTS)
        (run / graph / "log.csv").write_text("step,key,value\n100,loss,0.5\n100,seconds,3.0\n200,loss,0.25\n")
    record = {"config": dataclasses.asdict(config), "seconds": {}, "commit": "c", "start": None}
    write_json(run / RUN, json.loads(json.dumps(record)))
