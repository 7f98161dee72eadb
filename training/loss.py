"""Losses, each a function of tensors on the unit scale to one number."""

from __future__ import annotations

import torch
from torch import Tensor


def charbonnier(output: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + epsilon^2): L1 with a rounded tip (Charbonnier et al., 1994)."""
    return torch.sqrt((output - target) ** 2 + epsilon**2).mean()


def noise_weighted_l1(output: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """L1 per sample, divided by the square root of its noise level sigma (B,).

    Plain L1 lets the noisiest samples decide everything; division by sigma itself would spend the
    network on levels where nothing can be gained. The root lies between.
    """
    error = (output - target).abs().mean(dim=(1, 2, 3))
    return (error / torch.sqrt(sigma + 2 / 255)).mean()


def log_level_error(estimated: Tensor, true: Tensor, under: float = 1.5) -> Tensor:
    """|log(estimated / true)| of noise levels, weighted `under` times where estimated too low.

    Noise that is underestimated stays in the image; the asymmetry is CBDNet's (Guo et al., 2019).
    """
    tiny = 1e-5
    difference = torch.log(estimated + tiny) - torch.log(true + tiny)
    return torch.where(difference < 0, -under * difference, difference).mean()
