"""One image through the trained stage 1: its noise law and its preliminary denoised version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.noise import Plane
from training.noise.correlation import LOWEST_SNR, flat_patches
from training.noise.level_function import variance_factor
from training.pipeline.calibration import calibrate
from training.pipeline.inference import predict, refine
from training.pipeline.learner import Preliminary, PreliminaryConfig
from training.pipeline.likelihood import FLOOR
from training.pipeline.noise_table import first_guess, likeliest_law
from training.pipeline.posterior import posterior_mean, remaining_variance
from training.pipeline.record import ImageSet, NoiseRow, NoisyImage

Law = tuple[float, float]  # (a, b): variance a max(s, 0) + b at signal s
SMALLEST = 1e-10  # variance: far below any quantisation


@dataclass(frozen=True)
class Restoration:
    """What stage 1 makes of one image."""

    image: Plane  # the posterior mean x*
    row: NoiseRow
    residual_share: float  # root mean square of noisy - mean, over the noise level: below 1 where noise leaks


def variance_at(law: Law, signal: Tensor, floor: float) -> Tensor:
    """a max(s, 0) + b for signals of any shape, at least `floor`."""
    return (law[0] * signal.clamp(min=0) + law[1]).clamp(min=floor)


def raw_law(model: Preliminary, index: int | None, noisy: Tensor, mean: Tensor, model_variance: Tensor) -> Law:
    """What the likelihood ended with for one image; `index` is its row in the noise table, if it has one.

    An image that was not trained on gets the law of greatest likelihood, all else as trained.
    """
    if model.noise_laws is not None and index is not None:
        return model.noise_laws[index]
    if model.noise_laws is None:
        variance = model.noise(mean, torch.zeros(1, dtype=torch.long))
        return line_through(mean, variance)
    return likeliest_law(noisy - mean, mean, model_variance, first_guess(noisy[0, 0].cpu().numpy(), 1))


def line_through(signal: Tensor, variance: Tensor) -> Law:
    """The least squares (a, b) of a variance that is any function of the signal; neither is negative."""
    x, v = signal.double().clamp(min=0).flatten(), variance.double().flatten()
    spread = float(((x - x.mean()) ** 2).mean())
    a = max(0.0, float(((x - x.mean()) * (v - v.mean())).mean()) / max(spread, 1e-12))
    return a, max(SMALLEST, float(v.mean() - a * x.mean()))


def restore(
    model: Preliminary, image: NoisyImage, noisy: Plane, record: ImageSet, index: int | None, config: PreliminaryConfig
) -> Restoration:
    """The noise row and the posterior mean of one noisy plane (H, W), computed where the model's weights are."""
    y = torch.from_numpy(noisy).to(next(model.parameters()).device)[None, None]
    mean, model_variance = predict(model.network, y, record.stride, config.tile)
    raw = raw_law(model, index, y, mean, model_variance)
    blind = mean[0, 0].cpu().numpy()
    signal = max(0.0, float(np.median(blind)))
    raw_level = float(np.sqrt(max(raw[0] * signal + raw[1], SMALLEST)))
    found = calibrate(noisy, blind, raw_level)
    law = (found.a, found.b) if found else raw
    patches = flat_patches(noisy, LOWEST_SNR if record.rician else 0.0, blind)
    factor = variance_factor(patches, law, np.array(record.correlation))
    law = (law[0] * factor, law[1] * factor)
    level = float(np.sqrt(max(law[0] * signal + law[1], SMALLEST)))
    row = NoiseRow(
        id=image.id,
        set=image.set,
        a=law[0],
        b=law[1],
        level=level,
        raw_a=raw[0],
        raw_b=raw[1],
        raw_level=raw_level,
        bias_corrected=found is not None,
        fit_residual=found.fit_residual if found else 0.0,
        share_flat=found.share_flat if found else 0.0,
    )
    share = float(np.sqrt(np.mean((noisy - blind) ** 2))) / max(level, FLOOR**0.5)
    closer = min(record.stride, config.inference_stride)
    if closer != record.stride:
        mean, model_variance = predict(model.network, y, closer, config.tile)
    restored = combine(model, y, mean, model_variance, raw, law, config)
    return Restoration(restored[0, 0].cpu().numpy(), row, share)


def combine(
    model: Preliminary,
    noisy: Tensor,
    mean: Tensor,
    model_variance: Tensor,
    raw: Law,
    law: Law,
    config: PreliminaryConfig,
) -> Tensor:
    """The posterior mean, with the noise as calibrated and the model variance that is left; all (1, 1, H, W)."""
    noise_variance = variance_at(law, mean, SMALLEST)
    remaining = remaining_variance(model_variance, variance_at(raw, mean, FLOOR), noise_variance)
    if config.refine:
        mean = refine(model.network, noisy, mean, config.tile)
    return posterior_mean(noisy, mean, remaining, noise_variance, config.gain)
