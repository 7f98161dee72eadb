"""Losses of super-resolution: SSIM as scikit-image has it, differences and spectra by hand, float32 throughout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.data import camera
from torch import Tensor

from training.loss import fourier_loss, gradient_loss, ssim_loss
from training.metric import ssim

LOSSES = (ssim_loss, gradient_loss, fourier_loss)


def photograph(rows: int = 97, columns: int = 120) -> np.ndarray:
    return (camera()[100 : 100 + rows, 150 : 150 + columns] / 255).astype(np.float32)


def batch(*planes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(planes))[:, None]


def disturbed(plane: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(plane.shape, dtype=np.float32)
    return (plane + np.float32(level) * noise).astype(np.float32)


@pytest.mark.parametrize("level", [0.01, 0.1, 0.5])
def test_ssim_is_that_of_scikit_image(level: float) -> None:
    plane = photograph()
    noisy = disturbed(plane, level)
    assert float(ssim_loss(batch(noisy), batch(plane))) == pytest.approx((1 - ssim(noisy, plane)) / 2, abs=2e-6)


def test_ssim_of_a_batch_is_the_mean_and_has_a_fixed_range() -> None:
    plane = photograph()
    first, second = disturbed(plane, 0.05), disturbed(plane, 0.2, seed=1)
    both = float(ssim_loss(batch(first, second), batch(plane, plane)))
    each = [float(ssim_loss(batch(noisy), batch(plane))) for noisy in (first, second)]
    assert both == pytest.approx(sum(each) / 2, abs=1e-6)
    bright = plane.copy()
    bright[0, 0] = 2.0  # one bright pixel must not rescale the rest
    assert float(ssim_loss(batch(bright), batch(plane))) < 0.01


def test_opposite_structure_is_worse_than_none() -> None:
    """Published was |SSIM|: an inverted picture passed for a good one."""
    target = batch(disturbed(np.full((40, 40), 0.5, np.float32), 0.1))
    inverted, none = (float(ssim_loss(x, target)) for x in (1 - target, torch.full_like(target, 0.5)))
    assert inverted > 0.9 > none > 0.4 > float(ssim_loss(target, target))


def test_an_image_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 11 x 11, not \\(10, 20\\)"):
        ssim_loss(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))


def test_gradient_loss_sees_steps_alone() -> None:
    target = batch(photograph())
    assert float(gradient_loss(target + 0.3, target)) == pytest.approx(0, abs=1e-6)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) * 0.1
    assert float(gradient_loss(ramp, torch.zeros_like(ramp))) == pytest.approx(0.1)


def test_fourier_loss_counts_every_frequency() -> None:
    wave = torch.cos(2 * torch.pi * 4 * torch.arange(32) / 32).expand(1, 1, 16, 32)
    zero = torch.zeros_like(wave)
    # One coefficient of the half plane, 16 x 17 of them: amplitude / 2 * sqrt(16 * 32)
    assert float(fourier_loss(wave, zero)) == pytest.approx(0.5 * (16 * 32) ** 0.5 / (16 * 17), rel=1e-5)
    assert float(fourier_loss(wave, wave)) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_differentiable(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(1, 1, 12, 13, generator=generator, dtype=torch.float32).requires_grad_()
    target = torch.rand(1, 1, 12, 13, generator=generator)
    (gradient,) = torch.autograd.grad(loss(output, target), output)
    direction = torch.randn(output.shape, generator=generator)
    step = 1e-3 * direction / direction.norm()
    with torch.no_grad():
        change = loss(output + step, target) - loss(output - step, target)
    assert float(change) == pytest.approx(float(2 * (gradient * step).sum()), rel=0.1)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_float32_under_autocast(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    plane = photograph()
    output, target = batch(disturbed(plane, 0.02)), batch(plane)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = loss(output, target)
    assert under.dtype == torch.float32
    assert torch.equal(under, loss(output, target))
    assert torch.isfinite(loss(output.bfloat16(), target))
