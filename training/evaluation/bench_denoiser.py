"""Denoisers after an equal training budget: white noise, and what each makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.networks.blind_spot import BlindSpotNetwork
from models.networks.denoiser import Denoiser
from models.networks.registry import build_network
from training.config import TrainConfig, read_config
from training.data.crop import middle
from training.data.pair import NoisyPairs
from training.evaluation.bench import CONFIGS, Bench
from training.evaluation.blind import BlindSpotDenoiser, likelihood_objective
from training.evaluation.case import degrade_all, white
from training.evaluation.image import HeldBack
from training.evaluation.score import score
from training.evaluation.table import Row, mean
from training.loop import Objective
from training.objective import denoising

ENTRIES = CONFIGS / "networks.toml"
LEVELS = (15.0, 25.0, 50.0)
SCORED_SIDE = 192  # images are cut to it: attention over a whole image takes memory by the square of its area


def read_base() -> TrainConfig:
    """The shipped denoiser's images and noise, of which white noise that nothing clips: what all can learn."""
    base = read_config(CONFIGS / "denoise.toml")
    return dataclasses.replace(
        base, noise=dataclasses.replace(base.noise, coloured_share=0.0, rician_share=0.0), validation=()
    )


class DenoiserBench(Bench):
    """Clean pixels teach a denoiser, noisy ones a blind-spot network."""

    def start(self, config: TrainConfig) -> nn.Module:
        """Bare where it is a blind-spot network, else as a denoiser."""
        torch.manual_seed(config.seed)
        network = build_network(config.restore.network, config.restore.options)
        return network if isinstance(network, BlindSpotNetwork) else Denoiser(network)

    def pairs(self, config: TrainConfig) -> NoisyPairs:
        fit = config.restore
        return NoisyPairs(self.crops, fit.pairs, config.seed, fit.batch, fit.steps, config.noise, 0.0)

    def objective(self, network: nn.Module) -> Objective:
        if isinstance(network, BlindSpotNetwork):
            return likelihood_objective()
        return dataclasses.replace(denoising([]), validate=lambda network: {})

    def finished(self, network: nn.Module) -> nn.Module:
        return BlindSpotDenoiser(network) if isinstance(network, BlindSpotNetwork) else network

    def scores(self, trained: nn.Module, images: Sequence[HeldBack]) -> Row:
        """Mean PSNR and SSIM under white noise, told its level."""
        scores: dict[str, list[list[float]]] = {}
        crops = [dataclasses.replace(image, plane=middle(image.plane, SCORED_SIDE)) for image in images]
        for case in degrade_all(crops, [white(level) for level in LEVELS]):
            arrays = (case.noisy[None, None], case.noise.law.parameters[None], np.ones(1, np.float32))
            with torch.no_grad():
                restored, _ = trained(*(torch.from_numpy(array) for array in arrays))
            scores.setdefault(f"white {case.noise.level_255:g}", []).append(score(restored[0, 0].numpy(), case.clean))
        return {noise: mean(found) for noise, found in scores.items()}
