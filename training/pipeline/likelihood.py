"""How likely a noisy pixel is, given its mean, the variance of that mean and the noise's variance.

y = mean + model error (variance Vm) + noise (variance Vn), all Gaussian (Wu et al., D-BSN, 2020). Only
Vm + Vn can be told from a likelihood of y; what is noise is decided afterwards, on flat pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = 1e-3**2  # of the noise's variance, unit scale squared

Likelihood = Callable[[Tensor, Tensor, Tensor], Tensor]


def exact(residual: Tensor, model_variance: Tensor, noise_variance: Tensor) -> Tensor:
    """Twice the negative log-likelihood per element, less log(2 pi): r^2 / (Vm + Vn) + log(Vm + Vn)."""
    total = model_variance + noise_variance.clamp(min=FLOOR)
    return residual**2 / total + torch.log(total)


def constrained(residual: Tensor, model_variance: Tensor, noise_variance: Tensor) -> Tensor:
    """An upper bound of `exact`, tight where Vm << Vn: r^2 / (Vm + Vn) + log Vn + Vm / Vn.

    It charges model variance by its share of the noise's, so the noise takes nearly all of the total.
    """
    noise = noise_variance.clamp(min=FLOOR)
    return residual**2 / (model_variance + noise) + torch.log(noise) + model_variance / noise


LIKELIHOODS: dict[str, Likelihood] = {"exact": exact, "constrained": constrained}
