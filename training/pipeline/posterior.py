"""The best guess of a pixel from what its neighbours say and what was measured there."""

from __future__ import annotations

from torch import Tensor


def posterior_mean(
    noisy: Tensor, mean: Tensor, model_variance: Tensor, noise_variance: Tensor, gain: float = 1.0
) -> Tensor:
    """x* = (y Vm + mean g Vn) / (Vm + g Vn), element by element (Wu et al., D-BSN, 2020).

    `gain` g, 0.9 to 1, leans towards the noisy pixel. Where neither variance is known to be above 0 the
    noisy value is returned: nothing says that it is wrong.
    """
    trusted = gain * noise_variance
    total = model_variance + trusted
    return noisy + (mean - noisy) * (trusted / total.clamp(min=1e-20))


def remaining_variance(model_variance: Tensor, raw_noise: Tensor, noise: Tensor) -> Tensor:
    """Vm once the noise is known better: the likelihood fixed the total Vm + Vn, so Vm is the rest of it."""
    return (model_variance + raw_noise - noise).clamp(min=0.0)
