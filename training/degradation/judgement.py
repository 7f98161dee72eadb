"""What the generator and the critic of a degradation are judged by: the critic's opinion, and measured facts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training.degradation.config import PdmConfig
from training.degradation.generator import KERNEL_LATENTS, DegradationGenerator, Fake
from training.degradation.measure import second_moments
from training.degradation.population import MeasuredNoise
from training.degradation.spectrum import FLOOR, Spectra, noise_power_of, smooth
from training.degradation.unpaired import latents_of
from training.duel import Rules
from training.loop import Batch
from training.noise.spectrum import noise_power

POOL = 12  # rows of the squares on which the noise's level is compared
BOX = 8  # rows of the squares that noise must not make brighter or darker
LOW_PASS = 2.0  # standard deviation in low-resolution pixels: what no blur or reduction may change
FAINT = 0.05  # of the mean power: less makes no difference to a colour
UNKNOWN = np.array([[0.0, 1e-4]])  # law of the noise where no patch is quiet; it then weighs nothing


@dataclass(frozen=True)
class Target:
    """What is known of the degradation before it is learned."""

    spectra: Spectra
    noise: MeasuredNoise | None
    critic_level: float  # root mean square of the low-resolution images less their local mean

    @property
    def laws(self) -> NDArray[np.float64]:
        """(a, b) of the images' noise, the least noisy first, (N, 2)."""
        return UNKNOWN if self.noise is None else self.noise.laws[np.argsort(self.noise.levels, kind="stable")]


class Judgement:
    """The two players' losses."""

    def __init__(self, config: PdmConfig, target: Target, device: torch.device) -> None:
        self.config, self.spectra = config, target.spectra.to(device)
        self.wanted = torch.log(self.spectra.low + FLOOR)[self.spectra.used]
        self.colour: Tensor | None = None
        self.slow = 1.0
        if target.noise is not None:
            power = smooth(torch.from_numpy(noise_power(target.noise.correlation).astype(np.float32)))
            self.colour = torch.log(power + FAINT).to(device)
            self.slow = box_share(target.noise.correlation)

    def rules(self) -> Rules:
        return Rules(self.critic_loss, self.generator_terms, self.validate)

    def critic_loss(self, generator: nn.Module, critic: nn.Module, batch: Batch) -> Tensor:
        """Least squares: 1 is real, 0 is not (Mao et al., 2017)."""
        fake = Fake(*generator(batch["high"], latents_of(batch))).low
        real_loss: Tensor = (critic(batch["low"]) - 1).square().mean()
        fake_loss: Tensor = critic(fake).square().mean()
        return (real_loss + fake_loss) / 2

    def generator_terms(self, generator: nn.Module, critic: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms, weighted."""
        config, fake = self.config, Fake(*generator(batch["high"], latents_of(batch)))
        terms = {
            "adversarial": config.adversarial * (critic(fake.low) - 1).square().mean(),
            "spectrum": config.spectrum * self.spectrum_error(fake),
            "shape": config.shape * fake.deviation,
            "consistency": config.consistency * consistency(fake.reduced, batch["high"]),
        }
        if self.colour is not None:
            terms |= {
                "level": config.level * level(fake, batch["law"]),
                "colour": config.colour * self.colour_error(fake.noise),
                "local_mean": config.local_mean * local_mean(fake.noise, self.slow),
            }
        return terms

    def spectrum_error(self, fake: Fake) -> Tensor:
        """Mean squared logarithm of expected over measured power."""
        power = torch.exp(fake.contrast) * self.spectra.degraded(fake.kernels) + noise_power_of(fake.noise)
        return (torch.log(power + FLOOR)[self.spectra.used] - self.wanted).square().mean()

    def colour_error(self, noise: Tensor) -> Tensor:
        """The same of the noise alone, both of mean power 1."""
        assert self.colour is not None
        power = noise_power_of(noise)
        return (torch.log(power / power.mean() + FAINT) - self.colour).square().mean()

    @torch.no_grad()
    def validate(self, generator: nn.Module) -> dict[str, float]:
        """Second moment of the mean kernel, squared high-resolution pixels."""
        assert isinstance(generator, DegradationGenerator)
        grid = torch.randn(64, KERNEL_LATENTS, generator=torch.Generator().manual_seed(0))
        kernels = generator.kernel(grid.to(self.spectra.low.device))[0].double().cpu().numpy()
        return {"moment": float(np.trace(second_moments(kernels.mean(0))) / 2)}


def level(fake: Fake, law: Tensor) -> Tensor:
    """Mean squared logarithm of the noise's power in squares over that of its law (B, 2)."""
    variance = law[:, 0, None, None, None] * fake.reduced.detach().clamp(min=0) + law[:, 1, None, None, None]
    found, wanted = (F.avg_pool2d(each, POOL) for each in (fake.noise.square(), variance))
    return (torch.log(found + FLOOR) - torch.log(wanted + FLOOR)).square().mean()


def local_mean(noise: Tensor, share: float) -> Tensor:
    """Squared logarithm of the share of the noise's power in its local mean over `share`; the power as such is free."""
    found = F.avg_pool2d(noise, BOX).square().mean() / (noise.square().mean() + FLOOR)
    return torch.log((found + FLOOR) / share).square()


def box_share(correlation: NDArray[np.float64]) -> float:
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
    weight = torch.softmax(-(place**2) / (2 * LOW_PASS**2), 0)
    return F.conv2d(F.conv2d(image, weight.reshape(1, 1, -1, 1)), weight.reshape(1, 1, 1, -1))
