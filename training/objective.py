"""What each kind of network is trained for, and how a run is judged on held-back images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.denoiser import LEVEL, noise_map
from training.data.crop import middle
from training.data.noise import NoiseLaw, Plane, add_noise
from training.degradation.bicubic import reduce_plane
from training.degradation.degradation import Degradation
from training.loop import Batch, Objective
from training.loss import charbonnier, log_level_error, noise_weighted_l1
from training.metric import psnr, ssim
from training.seeds import sample_generator
from training.superresolution.ensemble import EnsembleConfig, ensemble_terms

COLOUR_WEIGHT = 0.3  # of an error of 1 in a correlation, beside a factor of e in the level
VALIDATION_SEED = 20_000_003  # far from any training seed


def noisy_set(planes: Sequence[Plane], sigma: float) -> list[tuple[Plane, Plane, NoiseLaw]]:
    """(noisy, clean, law) for every plane with white noise of that level; the same on every call."""
    law = NoiseLaw(slope=0.0, offset=sigma**2)
    return [
        (add_noise(plane, law, sample_generator(VALIDATION_SEED, round(sigma * 1e6), i)), plane, law)
        for i, plane in enumerate(planes)
    ]


def as_batch(plane: Plane, network: nn.Module | None = None) -> Tensor:
    """A plane (H, W) as (1, 1, H, W), on the network's device if one is given."""
    batch = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
    return batch if network is None else batch.to(next(network.parameters()).device)


def as_plane(batch: Tensor) -> Plane:
    """(1, 1, H, W) as a plane (H, W), clipped to [0, 1]."""
    plane: Plane = batch[0, 0].float().cpu().numpy()
    return np.clip(plane, 0, 1)


def denoising(planes: Sequence[Plane], side: int = 192) -> Objective:
    """Restore the clean crop, told the noise level."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        restored, _ = network(batch["image"], batch["told"], torch.ones_like(batch["told"][:, 0]))
        sigma = torch.sqrt((batch["parameters"][:, 0] * 0.5 + batch["parameters"][:, 1]).clamp(min=0))
        return noise_weighted_l1(restored.float(), batch["clean"], sigma, batch.get("weight"))

    @torch.no_grad()
    def validate(network: nn.Module) -> dict[str, float]:
        scores = {}
        for level in (15, 25, 50):
            found = []
            for noisy, clean, law in noisy_set([middle(p, side) for p in planes], level / 255):
                image = as_batch(noisy, network)
                told = torch.from_numpy(law.parameters)[None].to(image)
                restored = as_plane(network(image, told, torch.ones_like(told[:, 0]))[0])
                found.append((psnr(restored, clean), ssim(restored, clean)))
            scores[f"psnr_{level}"], scores[f"ssim_{level}"] = (float(x) for x in np.mean(found, axis=0))
        return scores

    return Objective(loss, validate)


def noise_estimation(planes: Sequence[Plane], side: int = 256) -> Objective:
    """Tell the noise-level function of the crop, right at every signal that occurs in it, and the noise's colour."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        signal = F.avg_pool2d(batch["clean"], 8)
        estimated, true = network(batch["image"]).float(), batch["parameters"]
        level = log_level_error(noise_map(signal, estimated), noise_map(signal, true))
        return level + COLOUR_WEIGHT * (estimated[:, len(LEVEL) :] - true[:, len(LEVEL) :]).abs().mean()

    @torch.no_grad()
    def validate(network: nn.Module) -> dict[str, float]:
        scores = {}
        for level in (5, 15, 50):
            errors = []
            for noisy, clean, law in noisy_set([middle(p, side) for p in planes], level / 255):
                estimated = noise_map(as_batch(clean, network), network(as_batch(noisy, network)))
                errors.append(abs(float(estimated.mean()) / np.sqrt(law.offset) - 1))
            scores[f"median_error_{level}"] = float(np.median(errors))
        return scores

    return Objective(loss, validate)


def held_back(
    planes: Sequence[Plane], scale: int, network: nn.Module, side: int = 256, degradation: Degradation | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(low, high), (1, 1, H, W) on the network's device, for the middle of every plane cut to [0, 1]; bicubic unless
    said."""
    for number, plane in enumerate(planes):
        high = np.clip(middle(plane, side), 0, 1)
        rng = sample_generator(VALIDATION_SEED, scale, number)
        low = reduce_plane(high, scale) if degradation is None else degradation.degrade(high, rng)
        yield as_batch(low, network), as_batch(high, network)


def superresolution(
    planes: Sequence[Plane],
    scale: int,
    side: int = 256,
    ensemble: EnsembleConfig | None = None,
    degradation: Degradation | None = None,
) -> Objective:
    """Restore the high-resolution crop: by the Charbonnier loss, or an ensemble of losses without its adversary.

    Judged on bicubic reduction, and, where one is given, on draws of a degradation, the same every time.
    """
    config = None if ensemble is None else ensemble.without_adversary()
    features = None if config is None else config.read_features()

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        restored, clean = network(batch["image"]).float(), batch["clean"]
        if config is None:
            return charbonnier(restored, clean)
        known = None if features is None else features.to(clean.device)
        return torch.stack(list(ensemble_terms(restored, clean, config, known).values())).sum()

    @torch.no_grad()
    def validate(network: nn.Module) -> dict[str, float]:
        scores = upscaled(network, held_back(planes, scale, network, side), scale)
        if degradation is not None:
            drawn = upscaled(network, held_back(planes, scale, network, side, degradation), scale)
            scores |= {f"{name}_drawn": value for name, value in drawn.items()}
        return scores

    return Objective(loss, validate)


def upscaled(network: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]], scale: int) -> dict[str, float]:
    """Mean PSNR and SSIM of what a network makes of (low, high), and PSNR of bicubic interpolation."""
    found, plain = [], []
    for low, high in pairs:
        clean = as_plane(high)
        restored = as_plane(network(low))
        found.append((psnr(restored, clean), ssim(restored, clean)))
        bicubic = F.interpolate(low, scale_factor=scale, mode="bicubic", align_corners=False)
        plain.append(psnr(as_plane(bicubic), clean))
    scores = [float(x) for x in np.mean(found, axis=0)]
    return {"psnr": scores[0], "ssim": scores[1], "bicubic": float(np.mean(plain))}
