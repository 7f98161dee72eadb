"""Adversarial training of a super-resolver that has been trained without (BliMSR's second phase)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from training.data.noise import Plane
from training.data.pair import PairConfig
from training.duel import DuelFit, Rules, fit_duel
from training.loop import Batch
from training.objective import held_back, superresolution
from training.superresolution.discriminator import Discriminator, DiscriminatorConfig
from training.superresolution.ensemble import EnsembleConfig, ensemble_terms
from training.superresolution.feature import Vgg19


@dataclass(frozen=True, kw_only=True)
class AdversarialFit(DuelFit):
    """The course under which neither network ran away from the other in our trainings."""

    steps: int = 1500
    batch: int = 8
    head_start: int = 100


@dataclass(frozen=True)
class AdversarialConfig:
    """Everything that decides what adversarial training makes of a super-resolver, its seed apart."""

    fit: AdversarialFit = field(default_factory=AdversarialFit)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    pairs: PairConfig = field(default_factory=lambda: PairConfig(crop=96, clip_share=0.0))
    real_label: float = 0.9  # what the discriminator is asked to answer to real images: never quite certain

    def __post_init__(self) -> None:
        if not self.ensemble.adversarial:
            raise ValueError("adversarial.ensemble.adversarial: without a weight there is nothing to train against")
        if not 0.5 < self.real_label <= 1:
            raise ValueError(f"adversarial.real_label: {self.real_label} is not within 0.5 to 1")


def build_discriminator(config: DiscriminatorConfig, seed: int) -> Discriminator:
    """The untrained discriminator, seeded."""
    torch.manual_seed(seed)
    return Discriminator(config)


def fit_adversarial(
    network: nn.Module,
    pairs: Dataset[Batch],
    config: AdversarialConfig,
    planes: Sequence[Plane],
    scale: int,
    folder: Path,
    digest: str,
    *,
    fabric: Fabric,
    checkpoint_every: int,
    validate_every: int,
    seed: int = 0,
    workers: int = 1,
) -> nn.Module:
    """Trains a pre-trained super-resolver against a new discriminator; `pairs` give "image" and "clean".

    Returns the averaged network in float32 and evaluation mode. Resumes from `folder` as `fit_duel` does; its log also
    holds psnr, ssim and bicubic of `planes`, and the share of their real and restored crops that the discriminator
    tells right (`real_accuracy`, `fake_accuracy`). Raises ValueError for a feature file that is not the one named.
    """
    critic = build_discriminator(config.discriminator, seed)
    features = config.ensemble.read_features()
    return fit_duel(
        network,
        critic,
        pairs,
        adversarial_rules(config, None if features is None else features.to(fabric.device), critic, planes, scale),
        config.fit,
        folder,
        digest,
        fabric=fabric,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
        workers=workers,
    )


def adversarial_rules(
    config: AdversarialConfig, features: Vgg19 | None, critic: nn.Module, planes: Sequence[Plane], scale: int
) -> Rules:
    """What generator and discriminator want; `critic` is the bare network, which judges the held-back planes."""
    quality = superresolution(planes, scale).validate

    def critic_loss(generator: nn.Module, critic: nn.Module, batch: Batch) -> Tensor:
        both = torch.cat([batch["clean"], generator(batch["image"])])
        real, fake = critic(both).chunk(2)  # in one pass: one step of the power method for both
        return discrimination_loss(real, fake, config.real_label)

    def generator_terms(generator: nn.Module, critic: nn.Module, batch: Batch) -> dict[str, Tensor]:
        restored = generator(batch["image"])
        return ensemble_terms(restored, batch["clean"], config.ensemble, features, critic(restored))

    def validate(generator: nn.Module) -> dict[str, float]:
        if not planes:
            return {}
        scores = quality(generator)
        scores["ssim_held_back"] = scores.pop("ssim")  # the log has a term of the loss by that name
        return scores | accuracy(generator, critic, planes, scale)

    return Rules(critic_loss, generator_terms, validate)


def discrimination_loss(real: Tensor, fake: Tensor, real_label: float) -> Tensor:
    """Mean cross entropy of logits of real and restored images, the published average of both."""
    wanted = torch.full_like(real, real_label)
    return (F.binary_cross_entropy_with_logits(real, wanted) + F.softplus(fake).mean()) / 2


@torch.no_grad()
def accuracy(generator: nn.Module, critic: nn.Module, planes: Sequence[Plane], scale: int) -> dict[str, float]:
    """Shares of decisions that are right, on the middles of planes and on what is restored of them reduced."""
    right = [
        (float((critic(high) > 0).float().mean()), float((critic(generator(low)) < 0).float().mean()))
        for low, high in held_back(planes, scale, generator)
    ]
    real, fake = torch.tensor(right).mean(dim=0).tolist()
    return {"real_accuracy": real, "fake_accuracy": fake}
