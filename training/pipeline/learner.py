"""What stage 1 learns, and how: a blind-spot network and the noise of every image, from noisy images alone.

Phases (Wu et al., D-BSN, 2020), each a fit of its own that can be stopped and resumed: the mean alone;
the variances, with the mean held; all together, by the likelihood. Images whose noise is correlated
are learned from under pixel-shuffle downsampling (Lee et al., AP-BSN, 2022).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from models.bundle import sha256_of
from models.networks.cnn_estimate import CnnEstimate
from models.networks.registry import build_network
from training.config import Fit
from training.data.noise import Plane
from training.loop import Batch, Objective, fit_network
from training.pipeline.likelihood import LIKELIHOODS
from training.pipeline.noise_table import NoiseTable, first_guess
from training.pipeline.record import AUDIT, Audit, read_audit, read_plane
from training.pipeline.subimage import NoisyFile, SubImages

PHASES = ("mean", "variance", "joint")
HEAD = "variance_head"  # of a blind-spot network


@dataclass(frozen=True)
class Phase:
    """One fit of stage 1."""

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 50


@dataclass(frozen=True)
class PreliminaryConfig:
    """Everything that decides what stage 1 produces, its seed apart."""

    network: str = "dbsn-light"  # a blind-spot network of models.networks.registry
    options: dict[str, Any] = field(default_factory=lambda: {"channels": 64, "modules": 9})
    noise: str = "table"  # a law per image, or "cnn-est": one function of the signal for all (the published way)
    distance: str = "l1"  # of the mean, in the first phase: edges of bone and air do not rule it; or "l2"
    likelihood: str = "exact"  # or "constrained"
    mean: Phase = field(default_factory=lambda: Phase(2000))
    variance: Phase = field(default_factory=lambda: Phase(200))
    joint: Phase = field(default_factory=lambda: Phase(1000, learning_rate=1e-3))
    batch: int = 8  # over all processes together
    side: int = 48  # of a patch, after pixel-shuffle downsampling
    optimizer: str = "muon"  # or "adamw"
    ema: float = 0.998
    precision: str = "bf16-mixed"  # of training, or "32-true"; images are denoised in float32
    inference_stride: int = 2  # no larger stride than this is used to denoise (asymmetric downsampling)
    refine: bool = False  # random replacing refinement of the denoised images, with fixed masks
    gain: float = 1.0  # 0.9 to 1: below 1 leans towards the noisy pixel
    tile: int = 512  # pixels; bounds the memory, changes no result
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name, known in (("noise", ("table", "cnn-est")), ("distance", ("l1", "l2")), ("likelihood", LIKELIHOODS)):
            if getattr(self, name) not in known:
                raise ValueError(f"preliminary.{name}: {getattr(self, name)!r} is none of {', '.join(known)}")
        if not 0.9 <= self.gain <= 1:
            raise ValueError(f"preliminary.gain: {self.gain} is not within 0.9 to 1")
        if self.precision == "bf16-mixed" and self.options.get("channels", 16) % 16:
            # Measured with PyTorch 2.13 on AVX-512: NaN gradients of dilated convolutions, channels last, otherwise.
            raise ValueError("preliminary.options: channels must be a multiple of 16 with precision bf16-mixed")
        if min(self.side, self.tile, self.inference_stride, self.checkpoint_every) < 1:
            raise ValueError("preliminary: side, tile, inference_stride and checkpoint_every must be at least 1")

    def fit(self, phase: str) -> Fit:
        """The settings of one phase, as the training loop takes them."""
        chosen: Phase = getattr(self, phase)
        return Fit(
            network=self.network,
            options=self.options,
            steps=chosen.steps,
            batch=self.batch,
            optimizer=self.optimizer,
            learning_rate=chosen.learning_rate,
            warmup=min(chosen.warmup, chosen.steps // 2),
            ema=self.ema,
            precision=self.precision,
        )


class NoiseFunction(nn.Module):
    """The published CNN_est, one function of the signal for the whole training set; called as `NoiseTable` is."""

    def __init__(self) -> None:
        super().__init__()
        self.estimate = CnnEstimate(law="pixelwise")

    def forward(self, signal: Tensor, index: Tensor) -> Tensor:
        return self.estimate.variance(signal, signal)


class Standardised(nn.Module):
    """A blind-spot network that sees all images by one affine map to about mean 0 and deviation 1.

    Constants of the training set, not of the image: a statistic of the image would hold the blind pixel. Zero padding
    is then a middle grey, and the mean need not first learn where the images lie.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, centre: float, scale: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("scale", torch.tensor(max(scale, 1e-6)))

    @property
    def radius(self) -> int | None:
        """The network's own."""
        return self.network.radius  # type: ignore[return-value]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 1, H, W) -> mean and model variance in the image's own unit, (B, 1, H, W)."""
        mean, variance = self.network((image - self.centre) / self.scale)
        return mean * self.scale + self.centre, variance * self.scale**2


def spread_of(planes: Iterable[Plane]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, every plane counting the same."""
    moments = np.mean([(p.mean(dtype=np.float64), np.square(p, dtype=np.float64).mean()) for p in planes], axis=0)
    return float(moments[0]), float(np.sqrt(max(moments[1] - moments[0] ** 2, 0.0)))


class Preliminary(nn.Module):
    """A blind-spot network and a noise model.

    `forward`: image (B, 1, H, W) and image numbers (B,) -> mean, model variance and noise variance, (B, 1, H, W),
    float32. The noise is looked up at the mean, which it does not pull at.
    """

    def __init__(self, network: nn.Module, noise: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.noise = noise

    def forward(self, image: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, model_variance = (x.float() for x in self.network(image))
        with torch.autocast(image.device.type, enabled=False):
            return mean, model_variance, self.noise(mean.detach(), index)

    @property
    def noise_laws(self) -> list[tuple[float, float]] | None:
        """(a, b) of every training image; None where one function serves all."""
        return self.noise.laws() if isinstance(self.noise, NoiseTable) else None

    def learn_only(self, phase: str) -> Preliminary:
        """Freezes what the phase does not train: all but the mean, all but the variances, or nothing."""
        for name, weight in self.named_parameters():
            of_variance = name.startswith(("network.network." + HEAD, "noise."))
            weight.requires_grad_(phase == "joint" or of_variance == (phase == "variance"))
        return self


def blind_spot(config: PreliminaryConfig) -> nn.Module:
    """The network that the configuration names. Raises ValueError where it is none."""
    network = build_network(config.network, config.options)
    if not hasattr(network, HEAD):
        raise ValueError(f"preliminary.network: {config.network} is no blind-spot network")
    return network


def build_preliminary(config: PreliminaryConfig, audit: Audit, out: Path, seed: int) -> Preliminary:
    """The untrained networks, seeded; the noise table starts from a robust guess for each training image."""
    torch.manual_seed(seed)
    network = blind_spot(config)
    images = audit.noisy("train")
    seen = Standardised(network, *spread_of(read_plane(out, image.file) for image in images))
    if config.noise == "cnn-est":
        return Preliminary(seen, NoiseFunction())
    guesses = [first_guess(read_plane(out, i.file), audit.sets[i.set].stride) for i in images]
    return Preliminary(seen, NoiseTable(torch.tensor(guesses)))


def objective(config: PreliminaryConfig, phase: str) -> Objective:
    """What a phase minimises, averaged over the pixels of a batch; `valid` leaves out what lies beyond an image."""
    distance = F.mse_loss if config.distance == "l2" else F.l1_loss
    likelihood = LIKELIHOODS[config.likelihood]

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        mean, model_variance, noise_variance = network(batch["image"], batch["index"])
        if phase == "mean":
            each = distance(mean, batch["image"], reduction="none")
        else:
            each = likelihood(batch["image"] - mean, model_variance, noise_variance)
        return (each * batch["valid"]).mean()

    return Objective(loss, lambda network: {})


def learn(
    out: Path, folder: Path, config: PreliminaryConfig, seed: int, fabric: Fabric, workers: int = 1
) -> Preliminary:
    """Trains all phases from the checkpoints in `folder`, one sub-folder each; in evaluation mode, float32."""
    audit = read_audit(out)
    files = [NoisyFile(out / image.file, audit.sets[image.set].stride) for image in audit.noisy("train")]
    if not files:
        raise ValueError("preliminary: the audit has no noisy image to learn from")
    model = build_preliminary(config, audit, out, seed)
    digest = digest_of(out, config, seed)
    for number, phase in enumerate(PHASES):
        fit = config.fit(phase)
        trained = fit_network(
            copy.deepcopy(model).learn_only(phase),
            SubImages(files, config.side, len(PHASES) * seed + number, fit.batch, fit.steps),
            objective(config, phase),
            fit,
            folder / phase,
            digest,
            fabric=fabric,
            checkpoint_every=config.checkpoint_every,
            validate_every=fit.steps,
            workers=workers,
        )
        assert isinstance(trained, Preliminary)
        model = trained
    return model.eval().requires_grad_(False)


def digest_of(out: Path, config: PreliminaryConfig, seed: int) -> str:
    """SHA-256 of what decides the weights: a checkpoint made from anything else is refused."""
    text = json.dumps([dataclasses.asdict(config), seed, sha256_of(out / AUDIT)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
