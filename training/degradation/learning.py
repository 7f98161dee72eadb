"""Learns the degradation distribution from unpaired images: a duel, held on course by what can be measured directly.

A critic alone finds a blur on few images only by luck. The mean power spectra of both sets and the low-resolution
images' quiet patches say how wide the kernels are on average and how strong and coloured the noise is; the critic
judges what averages do not: how kernels and noise are distributed, and what the noise looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric

from training.data.noise import Plane
from training.degradation.config import PdmConfig
from training.degradation.critic import PatchCritic, fine
from training.degradation.generator import DegradationGenerator
from training.degradation.judgement import Judgement, Target
from training.degradation.learned import LearnedDegradation, write_learned
from training.degradation.measure import measure_draws
from training.degradation.population import measure_noise
from training.degradation.spectrum import measure_spectra
from training.degradation.unpaired import UnpairedCrops, large_enough
from training.duel import fit_duel

PLANES_MAX = 400  # of a set, that are measured


def learn_degradation(
    high: Sequence[Path],
    low: Sequence[Path],
    scale: int,
    config: PdmConfig,
    seed: int,
    folder: Path,
    digest: str,
    fabric: Fabric,
    workers: int = 1,
) -> LearnedDegradation:
    """Learns p(kernel) and p(noise | image) that make images like those of `low` out of images like those of `high`.

    Both are .npy files, float32 (H, W) on the unit scale, of other objects or the same. Leaves `degradation.pt`,
    `degradation.json` and `log.csv` in `folder`; a second call goes on where the first was interrupted, to the bit.
    Raises ValueError where a set has no image that is large enough.
    """
    side = config.side(scale)
    high, low = large_enough(high, config.crop * scale), large_enough(low, config.crop)
    target = measure_target(planes_of(high), planes_of(low), scale)
    fit = config.fit
    data = UnpairedCrops(high, low, target.laws, scale, config.crop, seed, fit.batch, fit.steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator, critic = DegradationGenerator(scale, side), PatchCritic(target.critic_level, config.critic_features)
    if target.noise is not None:
        generator.noise.start(float(np.median(target.noise.levels)))
    every = {"checkpoint_every": config.checkpoint_every, "validate_every": config.checkpoint_every}
    rules = Judgement(config, target, fabric.device).rules()
    best = fit_duel(generator, critic, data, rules, fit, folder, digest, fabric=fabric, workers=workers, **every)
    assert isinstance(best, DegradationGenerator)
    learned = LearnedDegradation(best.cpu(), measure_draws(best, planes_of(high), seed))
    if fabric.is_global_zero:
        write_learned(folder, learned)
    return learned


def planes_of(paths: Sequence[Path]) -> list[Plane]:
    """The planes, or 400 of them evenly chosen."""
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), PLANES_MAX)).round().astype(int)
    return [np.load(paths[i], mmap_mode="r", allow_pickle=False) for i in chosen]


def measure_target(high: Sequence[Plane], low: Sequence[Plane], scale: int) -> Target:
    """Spectra of both sets and noise of the low-resolution one."""
    magnitude = all(float(plane.min()) >= 0 for plane in low)
    energy = [float(fine(torch.from_numpy(np.array(plane))[None, None]).square().mean()) for plane in low]
    level = float(np.sqrt(np.mean(energy)))
    return Target(measure_spectra(high, low, scale), measure_noise(low, magnitude), max(level, 1e-6))
