"""Stage restore: the network that is served, trained with pairs made afresh at every step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.networks.registry import build_network
from training.config import Fit, TrainConfig
from training.data.noise import Plane
from training.data.pair import PairConfig, ReducedPairs
from training.data.source import SourceConfig
from training.export import geometry
from training.machine import Machine
from training.objective import superresolution
from training.pipeline.record import read_plane
from training.start import begin, start_bundle, start_digest, start_record
from training.superresolution.degradation import input_hashes, read_degradation, read_mixture
from training.superresolution.ensemble import EnsembleConfig
from training.superresolution.record import PictureAudit, of_split, read_pictures
from training.superresolution.source import CropConfig, crops_of
from training.train import WEIGHTS, Task, build_graph, commit, fit_graph, save_weights, write_run

FOLDER, GRAPH = "restore", "restore"
VALIDATION_IMAGES = 16


def default_fit() -> Fit:
    return Fit(network="residual-upscaler", pairs=PairConfig(crop=96, clip_share=0.0), learning_rate=1.5e-3)


@dataclass(frozen=True)
class RestoreConfig:
    """Everything that decides what this stage produces, seed and scale apart."""

    name: str = ""  # of the bundle; "": superresolve-x2 or superresolve-x4
    summary: str = "Super-resolver for the degradation of a set of images"
    fit: Fit = field(default_factory=default_fit)  # the options of the network without its scale
    crops: CropConfig = field(default_factory=CropConfig)
    ensemble: EnsembleConfig | None = None  # losses in place of Charbonnier's; their adversary waits for its stage
    start: str = ""  # a bundle (its folder, or NAME@VERSION among the shipped ones) to go on from; "": from scratch
    keep: float = 0.0  # share of that bundle's weights in the result: keeps what it could do (Wortsman et al., 2022)
    tiles: tuple[int, ...] = (64, 128, 192, 256, 512)
    checkpoint_every: int = 250
    validate_every: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.keep < 1:
            raise ValueError(f"restore.keep: {self.keep} is no share from 0 to below 1")

    def train_config(self, out: Path, seed: int) -> TrainConfig:
        """The same as the trainer and the export know it; reads scale and degradation of the run."""
        scale, mixture = read_mixture(out)
        return dataclasses.replace(self.at_scale(scale, seed), degradation=mixture)

    def at_scale(self, scale: int, seed: int = 0) -> TrainConfig:
        """The same before the degradation is known."""
        return TrainConfig(
            name=self.name or f"superresolve-x{scale}",
            task="superresolve",
            summary=self.summary,
            restore=dataclasses.replace(self.fit, options={"scale": scale, **self.fit.options}),
            scale=scale,
            seed=seed,
            sources=(SourceConfig(name="high", folder="audit/high", include="*.npy"),),
            tiles=self.tiles,
            checkpoint_every=self.checkpoint_every,
            validate_every=self.validate_every,
        )


def run(out: Path, config: RestoreConfig, *, seed: int, machine: Machine) -> None:
    """Trains the network into `out/restore`, or goes on where the last checkpoint left it.

    Raises ValueError where nothing is there to learn from.
    """
    if machine.threads:
        torch.set_num_threads(machine.threads)
    code, start = commit(), record_of_start(config.start)
    audit, train_config = read_pictures(out), config.train_config(out, seed)
    planes, degradation = validation_planes(out, audit), read_degradation(out)
    objective = superresolution(planes, train_config.scale, ensemble=config.ensemble, degradation=degradation)
    if not planes:
        objective = dataclasses.replace(objective, validate=lambda network: {})
    task = Task(
        train_config,
        GRAPH,
        begin_network(train_config, config.start),
        pairs(out, audit, train_config, config.crops),
        objective,
        digest(out, config, train_config),
    )
    fabric = fit_graph(task, out / FOLDER, machine)
    if fabric.is_global_zero:
        if config.keep:
            blend(out / FOLDER / GRAPH / WEIGHTS, begin_network(train_config, config.start), config.keep)
        write_run(out / FOLDER, train_config, code, data_list(audit), fabric, {GRAPH: task.digest}, start)


def check(config: RestoreConfig, scale: int) -> None:
    """Raises ValueError or BundleError where the network, its tiles, or what it is to start from, is not to be had."""
    if config.fit.pairs.crop % scale:
        raise ValueError(f"restore.fit.pairs.crop: {config.fit.pairs.crop} is no multiple of the scale, {scale}")
    if config.ensemble is not None:
        config.ensemble.read_features()
    if config.keep and (not config.start or start_bundle(config.start).manifest.scale != scale):
        raise ValueError("restore.keep: there are weights to keep only with --from a bundle of the same scale")
    train_config = config.at_scale(scale)
    geometry(train_config, begin_network(train_config, config.start))


def pairs(out: Path, audit: PictureAudit, config: TrainConfig, crops: CropConfig) -> ReducedPairs:
    """The samples: crops of the training images, made small by the run's degradation."""
    fit = config.restore
    mixture = crops_of(out, audit, crops)
    degradation = read_degradation(out)
    return ReducedPairs(mixture, fit.pairs, config.seed, fit.batch, fit.steps, config.scale, degradation)


def validation_planes(out: Path, audit: PictureAudit) -> list[Plane]:
    """Some of the high-resolution images that were held back."""
    images = of_split(audit.high, "test")
    step = max(1, len(images) // VALIDATION_IMAGES)
    return [read_plane(out, image.file) for image in images[::step][:VALIDATION_IMAGES]]


def begin_network(config: TrainConfig, start: str) -> nn.Module:
    """The network as training starts: from scratch, or with the weights of a bundle of the same network.

    Of a bundle of another scale everything is taken but the tail, which is of another size. Raises ValueError where
    that bundle is of another network.
    """
    network = build_graph(config, GRAPH, config.restore)
    if not start:
        return network
    own, fit, bundle = network.state_dict(), config.restore, start_bundle(start)
    if bundle.manifest.network != fit.network:
        raise ValueError(f"{bundle.reference} is of another network or size than this {GRAPH}")
    before = build_network(fit.network, fit.options | {"scale": bundle.manifest.scale})
    weights = begin(before, start, GRAPH).state_dict()
    network.load_state_dict(own | {name: each for name, each in weights.items() if each.shape == own[name].shape})
    return network


def blend(path: Path, start: nn.Module, keep: float) -> None:
    """Mixes `keep` of the weights that training began with into those of a file."""
    trained = torch.load(path, map_location="cpu", weights_only=True)
    for name, weight in start.state_dict().items():
        if weight.is_floating_point():
            trained[name].lerp_(weight, keep)
    start.load_state_dict(trained)
    save_weights(start, path)


def record_of_start(start: str) -> dict[str, Any] | None:
    """What the run keeps of the bundle that it went on from, its scale included."""
    record = start_record(start)
    return None if record is None else record | {"scale": start_bundle(start).manifest.scale}


def digest(out: Path, config: RestoreConfig, train_config: TrainConfig) -> str:
    """SHA-256 of what decides the weights, the files of the earlier stages included."""
    ensemble = None if config.ensemble is None else dataclasses.asdict(config.ensemble)
    more = [dataclasses.asdict(config.crops), ensemble, start_digest(config.start), input_hashes(out)]
    return hashlib.sha256(json.dumps([train_config.digest(GRAPH), *more], sort_keys=True).encode()).hexdigest()


def data_list(audit: PictureAudit) -> list[dict[str, str]]:
    """What was trained on, as hashes: a bundle that leaves the hospital names none of its files."""
    images = of_split(audit.high, "train") + of_split(audit.low, "train")
    return [{"file": image.id, "sha256": image.sha256} for image in images]
