"""Stage adversarial: the same network, trained further against a discriminator; never what is served unasked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from models.bundle import ADVERSARIAL, sha256_of
from training.config import TrainConfig
from training.data.pair import ReducedPairs
from training.machine import Machine
from training.pipeline.record import read_json
from training.superresolution.adversary import AdversarialConfig, fit_adversarial
from training.superresolution.degradation import input_hashes, read_degradation
from training.superresolution.record import read_pictures
from training.superresolution.restoration import FOLDER as RESTORED
from training.superresolution.restoration import GRAPH, RestoreConfig, data_list, validation_planes
from training.superresolution.source import crops_of
from training.train import RUN, WEIGHTS, build_graph, commit, launch, save_weights, write_run

FOLDER = "adversarial"
SEED = 1_000_003  # apart from the seed of the pairs that the network was trained with before


@dataclass(frozen=True)
class VariantConfig(AdversarialConfig):
    """Everything that decides what this stage produces, its seed apart."""

    train: bool = False  # whether there is such a stage
    summary: str = "Adversarially trained super-resolver: its fine texture may be invented. Not for diagnosis"
    checkpoint_every: int = 250
    validate_every: int = 500


def run(out: Path, config: VariantConfig, restore: RestoreConfig, *, seed: int, machine: Machine) -> None:
    """Trains the variant into `out/adversarial`, or goes on where the last checkpoint left it."""
    if machine.threads:
        torch.set_num_threads(machine.threads)
    code, audit = commit(), read_pictures(out)
    train_config = variant_config(out, config, restore, seed)
    degradation, crops, fit = read_degradation(out), crops_of(out, audit, restore.crops), config.fit
    network = build_graph(train_config, GRAPH, train_config.restore)
    network.load_state_dict(torch.load(out / RESTORED / GRAPH / WEIGHTS, map_location="cpu", weights_only=True))
    made_from = digest(out, config, train_config)
    fabric = launch(machine, fit.precision)
    trained = fit_adversarial(
        network,
        ReducedPairs(crops, config.pairs, seed + SEED, fit.batch, fit.steps, train_config.scale, degradation),
        config,
        validation_planes(out, audit),
        train_config.scale,
        out / FOLDER / GRAPH,
        made_from,
        fabric=fabric,
        checkpoint_every=config.checkpoint_every,
        validate_every=config.validate_every,
        seed=seed,
        workers=machine.workers,
    )
    if fabric.is_global_zero:
        save_weights(trained, out / FOLDER / GRAPH / WEIGHTS)
        start = read_json(out / RESTORED / RUN)["start"]
        write_run(
            out / FOLDER, train_config, code, data_list(audit), fabric, {GRAPH: made_from}, start, adversarial=True
        )


def variant_config(out: Path, config: VariantConfig, restore: RestoreConfig, seed: int) -> TrainConfig:
    """The variant as the export knows it: its name and summary say what it is."""
    before = restore.train_config(out, seed)
    return dataclasses.replace(before, name=before.name + ADVERSARIAL, summary=config.summary)


def check(config: VariantConfig, scale: int) -> None:
    """Raises ValueError where the feature network is not to be had, or crops do not fit the scale."""
    if config.pairs.crop % scale:
        raise ValueError(f"adversarial.pairs.crop: {config.pairs.crop} is no multiple of the scale, {scale}")
    config.ensemble.read_features()


def digest(out: Path, config: VariantConfig, train_config: TrainConfig) -> str:
    """SHA-256 of what decides the weights, those it starts from included."""
    parts = dataclasses.asdict(config) | {"summary": ""}
    values = [train_config.digest(GRAPH), parts, input_hashes(out), sha256_of(out / RESTORED / GRAPH / WEIGHTS)]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
