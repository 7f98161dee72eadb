"""Stage 3: the denoiser that is served, and its noise estimator.

Learns from two streams at once (Wu et al., D-BSN, 2020): S1, the real noisy images with the answer of
stage 1, and S2, clean photographs with noise drawn from the learned population. It is told level and colour of the
noise, so one network serves them all; a share of S2's noise is of a broad population, beyond what was observed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import sha256_of
from training.config import Fit, TrainConfig
from training.data.crop import CropMixture
from training.data.noise import NoisePopulation, Population
from training.data.pair import NoisyPairs, PairConfig
from training.data.source import Source, SourceConfig
from training.data.stream import Mixture, RealPair, StreamConfig, Streams
from training.machine import Machine
from training.noise.population import read_population
from training.objective import denoising, noise_estimation
from training.pipeline.record import AUDIT, PRELIMINARY_IMAGES, TABLE, Audit, read_audit, read_plane
from training.pipeline.synthesis import LAWS, POPULATION, read_told
from training.start import begin, start_digest, start_record
from training.train import Task, build_graph, commit, fit_graph, write_run

FOLDER = "profound"
VALIDATION_IMAGES = 16


def default_restore() -> Fit:
    return Fit(network="ssformer", options={"size": "fast"}, pairs=PairConfig(crop=128, clip_share=0.2))


def default_estimate() -> Fit:
    options = {"channels": 48, "depth": 4}
    pairs = PairConfig(crop=160, clip_share=0.3)
    return Fit(network="noise-level", options=options, batch=8, precision="32-true", pairs=pairs)


@dataclass(frozen=True)
class ProfoundConfig:
    """Everything that decides what stage 3 produces, its seed apart."""

    name: str = "denoise"  # of the bundle
    summary: str = "Denoiser for the noise that was learned from a set of images"
    restore: Fit = field(default_factory=default_restore)
    estimate: Fit = field(default_factory=default_estimate)
    streams: StreamConfig = field(default_factory=StreamConfig)
    told_share: float = 0.25  # of the estimator's samples, real images with the noise that stage 1 found
    learned_share: float = 0.6  # of S2's noise; the rest is of the broad population
    broad: NoisePopulation = field(default_factory=lambda: NoisePopulation(coloured_share=0.35, log_share=0.35))
    start: str = ""  # a bundle (its folder, or NAME@VERSION among the shipped ones) to go on from; "": from scratch
    reduce_share: float = 0.2  # of the clean crops, taken from images made half as large
    tiles: tuple[int, ...] = (256, 512, 1024)
    checkpoint_every: int = 250
    validate_every: int = 1000

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.learned_share, self.told_share, self.reduce_share)):
            raise ValueError("profound: learned_share, told_share and reduce_share must lie between 0 and 1")

    def train_config(self, seed: int) -> TrainConfig:
        """The same as the trainer and the export know it."""
        clean = SourceConfig(
            name="clean", folder="audit/clean", include="*.npy", reduce=2, reduce_share=self.reduce_share
        )
        return TrainConfig(
            name=self.name,
            task="denoise",
            summary=self.summary,
            restore=self.restore,
            estimate=self.estimate,
            seed=seed,
            sources=(clean,),
            noise=self.broad,
            tiles=self.tiles,
            checkpoint_every=self.checkpoint_every,
            validate_every=self.validate_every,
        )


def run(
    out: Path,
    config: ProfoundConfig,
    *,
    seed: int,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    threads: int = 0,
    workers: int = 1,
) -> None:
    """Trains both graphs into `out/profound`, or goes on where the last checkpoint left them.

    Reads `audit`, `preliminary` and `synthesis` of the run. Raises ValueError where nothing is there to learn from.
    """
    if threads:
        torch.set_num_threads(threads)
    code, start = commit(), start_record(config.start)
    machine = Machine(accelerator, devices, nodes, threads, workers)
    audit, train_config = read_audit(out), config.train_config(seed)
    digests = {graph: digest(out, config, train_config, graph) for graph in train_config.fits}
    planes = [read_plane(out, image.file) for image in audit.clean if image.split == "test"][:VALIDATION_IMAGES]
    for graph, fit in train_config.fits.items():
        network = begin(build_graph(train_config, graph, fit), config.start, graph)
        pairs = streams(out, config, audit, train_config, graph)
        objective = (denoising if graph == "restore" else noise_estimation)(planes)
        if not planes:
            objective = dataclasses.replace(objective, validate=lambda network: {})
        task = Task(train_config, graph, network, pairs, objective, digests[graph])
        fabric = fit_graph(task, out / FOLDER, machine)
        if fabric.is_global_zero:
            write_run(out / FOLDER, train_config, code, data_list(audit), fabric, {graph: digests[graph]}, start)


def check(config: ProfoundConfig) -> None:
    """Raises ValueError or BundleError where the networks, or what they are to start from, are not to be had."""
    train_config = config.train_config(0)
    for graph, fit in train_config.fits.items():
        begin(build_graph(train_config, graph, fit), config.start, graph)


def digest(out: Path, config: ProfoundConfig, train_config: TrainConfig, graph: str) -> str:
    """SHA-256 of what decides one graph's weights, the files of the earlier stages included."""
    mixing = [dataclasses.asdict(config.streams), config.told_share, config.learned_share]
    values = [train_config.digest(graph), mixing, start_digest(config.start), input_hashes(out)]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def input_hashes(out: Path) -> list[str]:
    """SHA-256 of each file of the earlier stages that decides the samples."""
    return [sha256_of(out / file) for file in (AUDIT, TABLE, LAWS, POPULATION)]


def streams(out: Path, config: ProfoundConfig, audit: Audit, train_config: TrainConfig, graph: str) -> Any:
    """The samples of one graph, of both streams.

    From S1 the estimator learns what fine structure and noise of these images look like together: on photographs
    alone, it takes the grain of a CT for structure.
    """
    mixing = config.streams if graph == "restore" else StreamConfig(real_share=config.told_share)
    return samples(out, audit, train_config, graph, population(out, config), mixing)


def population(out: Path, config: ProfoundConfig) -> Mixture:
    """The noise of S2: the learned population, and the broad one."""
    return Mixture(read_population(out / POPULATION), config.broad, config.learned_share)


def samples(
    out: Path, audit: Audit, train_config: TrainConfig, graph: str, noise: Population, mixing: StreamConfig
) -> Any:
    """Photographs with that noise, mixed with real images. Raises ValueError where there are none to learn from."""
    fit = train_config.fits[graph]
    clean = [out / image.file for image in audit.clean if image.split == "train"]
    if not clean:
        raise ValueError("no clean training image; add photographs to the clean folder")
    crops = CropMixture([Source(train_config.sources[0], out, clean)])
    seed = train_config.seed * 2 + (graph == "estimate")
    misjudged = 0.0 if graph == "estimate" else 0.1
    pairs = NoisyPairs(crops, fit.pairs, seed, fit.batch, fit.steps, noise, misjudged)
    real = real_pairs(out, audit) if mixing.real_share else []
    if mixing.real_share == 1 and not real:
        raise ValueError(f"{graph}: real images alone, and of none of them stage 1 found the noise for certain")
    return Streams(pairs, real, mixing) if real else pairs


def real_pairs(out: Path, audit: Audit) -> list[RealPair]:
    """S1: noisy training images, what stage 1 made of them, and what it found their noise to be.

    An image whose flat patches do not bear that out is left out: fine structure may have been taken for noise.
    """
    told, pairs = read_told(out), []
    for image in audit.noisy("train"):
        if not told[image.id].trusted:
            continue
        restored = out / PRELIMINARY_IMAGES / f"{image.id}.npy"
        pairs.append(RealPair(out / image.file, restored, np.array(told[image.id].parameters, dtype=np.float32)))
    return pairs


def data_list(audit: Audit) -> list[dict[str, str]]:
    """What was trained on, as hashes: a bundle that leaves the hospital names none of its files."""
    noisy = [{"file": image.id, "sha256": image.sha256} for image in audit.noisy("train")]
    return noisy + [{"file": image.id, "sha256": image.sha256} for image in audit.clean if image.split == "train"]
