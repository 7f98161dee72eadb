"""Learns the degradation distribution from unpaired images: a duel, held on course by what can be measured directly.

A critic alone finds a blur on few images only by luck. The mean power spectra of both sets and the low-resolution
images' quiet patches say how wide the kernels are on average and how strong and coloured the noise is; the critic
judges what averages do not: how kernels and noise are distributed, and what the noise looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.noise import Plane
from training.degradation.config import PdmConfig
from training.degradation.critic import PatchCritic, fine
from training.degradation.generator import DegradationGenerator, Fake
from training.degradation.learned import LearnedDegradation, write_learned
from training.degradation.measure import measure_draws
from training.degradation.population import MeasuredNoise, measure_noise
from training.degradation.spectrum import FLOOR, Spectra, measure_spectra, noise_power_of
from training.degradation.unpaired import UnpairedCrops, large_enough, latents_of
from training.duel import Rules, fit_duel
from training.loop import Batch
from training.noise.spectrum import noise_power

PLANES_MAX = 400  # of a set, that are measured
POOL = 12  # rows of the squares on which the noise's level is compared
BOX = 8  # rows of the squares that noise must not make brighter or darker
LOW_PASS = 2.0  # standard deviation in low-resolution pixels: what no blur or reduction may change
UNKNOWN = np.array([[0.0, 1e-4]])  # law of the noise where no patch is quiet; it then weighs nothing


@dataclass(frozen=True)
class Target:
    """What is known of the degradation before it is learned."""

    spectra: Spectra
    noise: MeasuredNoise | None
    critic_level: float  # root mean square of the low-resolution images less their local mean

    @property
    def laws(self) -> np.ndarray:
        """(a, b) of the images' noise, the least noisy first, (N, 2)."""
        return UNKNOWN if self.noise is None else self.noise.laws[np.argsort(self.noise.levels, kind="stable")]


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
        generator, critic = DegradationGenerator(scale, side), PatchCritic(target.critic_level)
    if target.noise is not None:
        generator.noise.start(float(np.median(target.noise.levels)))
    every = {"checkpoint_every": config.checkpoint_every, "validate_every": config.checkpoint_every}
    rules = Judgement(config, target).rules()
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


class Judgement:
    """The two players' losses."""

    def __init__(self, config: PdmConfig, target: Target) -> None:
        self.config, self.target = config, target
        self.wanted = torch.log(target.spectra.low + FLOOR)[target.spectra.used]
        self.colour = self.slow = None
        if target.noise is not None:
            power = noise_power(target.noise.correlation)
            self.colour = torch.log(torch.from_numpy(power.astype(np.float32)) + 0.05)
            self.slow = box_share(target.noise.correlation)

    def rules(self) -> Rules:
        return Rules(self.critic_loss, self.generator_terms, self.validate)

    def critic_loss(self, generator: nn.Module, critic: nn.Module, batch: Batch) -> Tensor:
        """Least squares: 1 is real, 0 is not (Mao et al., 2017)."""
        fake = Fake(*generator(batch["high"], latents_of(batch))).low
        return ((critic(batch["low"]) - 1).square().mean() + critic(fake).square().mean()) / 2

    def generator_terms(self, generator: nn.Module, critic: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms, weighted."""
        config, fake = self.config, Fake(*generator(batch["high"], latents_of(batch)))
        terms = {
            "adversarial": config.adversarial * (critic(fake.low) - 1).square().mean(),
            "spectrum": config.spectrum * self.spectrum(fake),
            "consistency": config.consistency * consistency(fake.reduced, batch["high"]),
        }
        if self.colour is not None:
            terms |= {
                "level": config.level * level(fake, batch["law"]),
                "colour": config.colour * self.colour_error(fake.noise),
                "local_mean": config.local_mean * local_mean(fake.noise, self.slow or 0.0),
            }
        return terms

    def spectrum(self, fake: Fake) -> Tensor:
        """Mean squared logarithm of expected over measured power."""
        spectra = self.target.spectra
        power = torch.exp(fake.contrast) * spectra.degraded(fake.kernels) + noise_power_of(fake.noise)
        return (torch.log(power + FLOOR)[spectra.used] - self.wanted).square().mean()

    def colour_error(self, noise: Tensor) -> Tensor:
        """The same of the noise alone, both of mean power 1."""
        assert self.colour is not None
        power = noise_power_of(noise)
        return (torch.log(power / power.mean() + 0.05) - self.colour).square().mean()

    @torch.no_grad()
    def validate(self, generator: nn.Module) -> dict[str, float]:
        """Width of the mean kernel along an axis."""
        return {}


def level(fake: Fake, law: Tensor) -> Tensor:
    """Mean squared logarithm of the noise's power in squares over that of its law (B, 2)."""
    variance = law[:, 0, None, None, None] * fake.reduced.detach().clamp(min=0) + law[:, 1, None, None, None]
    found, wanted = (F.avg_pool2d(each, POOL) for each in (fake.noise.square(), variance))
    return (torch.log(found + FLOOR) - torch.log(wanted + FLOOR)).square().mean()


def local_mean(noise: Tensor, share: float) -> Tensor:
    """Squared logarithm of the share of the noise's power in its local mean over `share`; the power as such is free."""
    found = F.avg_pool2d(noise, BOX).square().mean() / (noise.square().mean() + FLOOR)
    return torch.log((found + FLOOR) / share).square()


def box_share(correlation: np.ndarray) -> float:
    """Share of the power of noise with a correlation (11, 11) that is in its mean over 8 x 8 pixels."""
    lags = np.abs(np.arange(len(correlation)) - len(correlation) // 2)
    pairs = np.maximum(BOX - lags, 0)
    return float(max((correlation * np.outer(pairs, pairs)).sum() / BOX**4, 1 / BOX**2))


def consistency(reduced: Tensor, high: Tensor) -> Tensor:
    """Mean absolute difference from the plainly reduced image, both low-passed: content stays where it is."""
    plain = F.avg_pool2d(high, high.shape[-1] // reduced.shape[-1])
    return (low_pass(reduced) - low_pass(plain)).abs().mean()


def low_pass(image: Tensor) -> Tensor:
    """image (B, 1, H, W) under a Gaussian of 2 pixels, where that lies inside."""
    place = torch.arange(-6, 7, device=image.device, dtype=image.dtype)
    weight = torch.exp(-(place**2) / (2 * LOW_PASS**2))
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(image, weight.reshape(1, 1, -1, 1)), weight.reshape(1, 1, 1, -1))
