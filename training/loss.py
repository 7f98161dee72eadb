"""Losses, each a function of tensors on the unit scale to one number."""

from __future__ import annotations

import torch
from torch import Tensor


def charbonnier(output: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + epsilon^2): L1 with a rounded tip (Charbonnier et al., 1994)."""
    return torch.sqrt((output - target) ** 2 + epsilon**2).mean()


def noise_weighted_l1(output: Tensor, target: Tensor, sigma: Tensor, weight: Tensor | None = None) -> Tensor:
    """L1 per sample, divided by the square root of its noise level sigma (B,), times its weight (B,) if given.

    Plain L1 lets the noisiest samples decide everything; division by sigma itself would spend the
    network on levels where nothing can be gained. The root lies between.
    """
    error = (output - target).abs().mean(dim=(1, 2, 3))
    scaled = error / torch.sqrt(sigma + 2 / 255)
    return (scaled if weight is None else scaled * weight).mean()


def log_level_error(estimated: Tensor, true: Tensor, negligible: float = 1 / 255) -> Tensor:
    """Mean |log((estimated + c) / (true + c))| of noise levels.

    The constant c (`negligible`) keeps levels below a grey step, which the images' own noise hides,
    from drowning those that matter. Symmetric on purpose: a penalty on underestimation, as in
    CBDNet (Guo et al., 2019), made every estimate 5 to 7 % too high.
    """
    return (torch.log(estimated + negligible) - torch.log(true + negligible)).abs().mean()
