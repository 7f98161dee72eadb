"""Super-resolvers after an equal training budget, each trained with one kind of degradation and scored with all."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.networks.registry import build_network
from training.config import TrainConfig, build
from training.data.crop import middle
from training.data.pair import ReducedPairs
from training.degradation.config import preset
from training.degradation.degradation import build_degradation
from training.degradation.learned import LearnedDegradation
from training.evaluation.bench import CONFIGS, Bench, Entry, config_of
from training.evaluation.image import HeldBack
from training.evaluation.reduction import degradations, reduce_all
from training.evaluation.superresolution import superresolution_table
from training.evaluation.table import Row, Table
from training.evaluation.upscaler import run_network
from training.loop import Objective
from training.objective import superresolution
from training.pipeline.record import write_json
from training.train import RUN, WEIGHTS, save_weights

ENTRIES = CONFIGS / "networks-superresolve.toml"
SCORED_SIDE = 256  # of the high-resolution images, which are cut to it
METHOD = "network"
GRAPH = "restore"


def read_base(path: Path, scale: int, kind: str) -> TrainConfig:
    """The images that a file of entries names, at a scale and with a kind of degradation ("bicubic", "blind", ...)."""
    sources = tomllib.loads(path.read_text(encoding="utf-8"))["sources"]
    raw = {"name": f"{kind}-x{scale}", "task": "superresolve", "summary": "", "scale": scale, "sources": sources}
    base = build(TrainConfig, raw | {"restore": {"network": ""}}, path.name)
    return dataclasses.replace(base, degradation=preset(kind))


class UpscalerBench(Bench):
    """Trains on one kind of degradation; its runs lie below `out` in a folder of that name."""

    def __init__(
        self, out: Path, kind: str, base: TrainConfig, data: Path, minutes: float, learned: LearnedDegradation | None
    ) -> None:
        """Raises ValueError where the kind has a share of a learned degradation, and none of this scale is given."""
        super().__init__(out / kind, base, data, minutes)
        self.kind, self.learned = kind, learned
        self.degradation = build_degradation(base.degradation, base.scale, None, learned)

    def rows(self, entries: Iterable[Entry], images: Sequence[HeldBack]) -> Table:
        """One row per entry, as a network of the bench's scale."""
        scaled = [dataclasses.replace(entry, options={"scale": self.base.scale} | entry.options) for entry in entries]
        return [{"trained on": self.kind} | row for row in super().rows(scaled, images)]

    def digest(self, entry: Entry) -> str:
        """SHA-256 of what decides the row, the learned degradation's weights included."""
        weights = self.learned.generator.state_dict().values() if self.learned else ()
        content = b"".join(weight.numpy().tobytes() for weight in weights)
        return hashlib.sha256(super().digest(entry).encode() + content).hexdigest()

    def start(self, config: TrainConfig) -> nn.Module:
        torch.manual_seed(config.seed)
        return build_network(config.restore.network, config.restore.options)

    def train(self, entry: Entry, folder: Path, digest: str) -> tuple[nn.Module, int]:
        """The same; the folder is then one that `medrestore evaluate superresolve --model` scores set by set."""
        trained, steps = super().train(entry, folder, digest)
        (folder / GRAPH).mkdir(exist_ok=True)
        save_weights(trained, folder / GRAPH / WEIGHTS)
        write_json(folder / RUN, {"config": dataclasses.asdict(config_of(entry, self.base, steps))})
        return trained, steps

    def pairs(self, config: TrainConfig) -> ReducedPairs:
        fit = config.restore
        return ReducedPairs(
            self.crops, fit.pairs, config.seed, fit.batch, fit.steps, config.scale, degradation=self.degradation
        )

    def objective(self, network: nn.Module) -> Objective:
        return dataclasses.replace(superresolution([], self.base.scale), validate=lambda network: {})

    def scores(self, trained: nn.Module, images: Sequence[HeldBack]) -> Row:
        """Per degradation PSNR / SSIM, the mean gain over bicubic interpolation and the smallest; consistency."""
        kinds = ["bicubic", "known", *(["pdm"] if self.learned else [])]
        crops = [HeldBack("all", image.name, middle(image.plane, SCORED_SIDE)) for image in images]
        cases = reduce_all(crops, degradations(kinds, self.base.scale, self.learned))
        table = superresolution_table(cases, self.base.scale, {METHOD: partial(run_network, trained)})
        columns: Row = {}
        for row in (row for row in table if row["method"] == METHOD):
            kind = row["degradation"]
            columns |= {kind: row["PSNR / SSIM"], f"{kind} gain": row["gain"], f"{kind} worst": row["smallest gain"]}
            columns[f"{kind} consistency"] = row["consistency"]
        return columns
