"""Likelihood and posterior against direct computation with Gaussians; what a likelihood can and cannot tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.pipeline.likelihood import FLOOR, LIKELIHOODS, Likelihood, constrained, exact
from training.pipeline.noise_table import NoiseTable, first_guess, likeliest_law
from training.pipeline.posterior import posterior_mean, remaining_variance


def made(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A residual, a model variance and a noise variance."""
    generator = torch.Generator().manual_seed(seed)
    variances = torch.rand(2, *shape, generator=generator, dtype=torch.float64) * 0.02 + 1e-4
    residual = torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.1
    return residual, variances[0], variances[1]


def test_exact_form_is_the_gaussian_density() -> None:
    residual, model, noise = made(50)
    density = torch.distributions.Normal(0.0, (model + noise).sqrt()).log_prob(residual)
    torch.testing.assert_close(exact(residual, model, noise), -2 * density - math.log(2 * math.pi))


def test_both_forms_are_the_diagonal_of_the_matrix_forms() -> None:
    residual, model, noise = made(6)
    model_matrix, noise_matrix = torch.diag(model), torch.diag(noise)
    total = model_matrix + noise_matrix
    density = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), total).log_prob(residual)
    assert exact(residual, model, noise).sum().item() == pytest.approx(-2 * density.item() - 6 * math.log(2 * math.pi))
    squared = residual @ torch.linalg.solve(total, residual)
    bound = squared + torch.logdet(noise_matrix) + torch.trace(torch.linalg.solve(noise_matrix, model_matrix))
    assert constrained(residual, model, noise).sum().item() == pytest.approx(bound.item())


def test_constrained_form_bounds_the_exact_one_and_is_tight_for_a_small_model_variance() -> None:
    residual, model, noise = made(200)
    gap = constrained(residual, model, noise) - exact(residual, model, noise)
    assert gap.min() > 0
    small = 1e-3 * noise
    gap = constrained(residual, small, noise) - exact(residual, small, noise)
    assert gap.max() < 1e-6


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_noise_variance_has_a_floor(likelihood: Likelihood) -> None:
    zero = torch.zeros(3)
    at_floor = likelihood(zero, zero, torch.full((3,), FLOOR))
    torch.testing.assert_close(likelihood(zero, zero, zero), at_floor)
    assert torch.isfinite(at_floor).all()


def fitted(likelihood: Likelihood) -> tuple[float, float]:
    """The two deviations fitted to residuals of deviations 0.02 and 0.10, from equal starts."""
    residual = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * math.hypot(0.02, 0.10)
    logs = torch.full((2,), math.log(0.05**2), requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        model, noise = logs.exp()
        likelihood(residual, model, noise).mean().backward()
        optimizer.step()
    model, noise = logs.detach().exp().sqrt().tolist()
    return model, noise


def test_exact_form_shares_the_total_equally() -> None:
    """Only Vm + Vn is identified: 0.0721 and 0.0721, though the truth is 0.02 and 0.10."""
    assert fitted(exact) == pytest.approx((0.0721, 0.0721), rel=0.03)


def test_constrained_form_gives_all_to_the_noise() -> None:
    model, noise = fitted(constrained)
    assert model < 0.02
    assert noise == pytest.approx(0.102, rel=0.03)


def test_posterior_trusts_what_is_certain() -> None:
    noisy, mean = torch.tensor([0.2, 0.9]), torch.tensor([0.6, 0.1])
    one, none = torch.ones(2), torch.zeros(2)
    torch.testing.assert_close(posterior_mean(noisy, mean, none, one), mean)
    torch.testing.assert_close(posterior_mean(noisy, mean, one, none), noisy)
    torch.testing.assert_close(posterior_mean(noisy, mean, one, one), (noisy + mean) / 2)
    torch.testing.assert_close(posterior_mean(noisy, mean, none, none), noisy)
    towards_noisy = posterior_mean(noisy, mean, one, one, gain=0.9)
    assert ((towards_noisy - noisy).abs() < (mean - noisy).abs() / 2).all()


def test_posterior_is_the_diagonal_of_the_matrix_form() -> None:
    _, model, noise = made(5)
    noisy, mean, _ = made(5, seed=2)
    precisions = torch.diag(1 / model), torch.diag(1 / noise)
    expected = torch.linalg.solve(precisions[0] + precisions[1], precisions[0] @ mean + precisions[1] @ noisy)
    torch.testing.assert_close(posterior_mean(noisy, mean, model, noise), expected)


def test_posterior_is_better_than_mean_and_pixel() -> None:
    generator = torch.Generator().manual_seed(4)
    clean = torch.zeros(20000)
    mean, noisy = 0.05 * torch.randn(20000, generator=generator), 0.08 * torch.randn(20000, generator=generator)
    best = posterior_mean(noisy, mean, torch.tensor(0.05**2), torch.tensor(0.08**2))
    expected = 1 / (1 / 0.05**2 + 1 / 0.08**2)
    assert float((best - clean).square().mean()) == pytest.approx(expected, rel=0.05)


def test_total_variance_is_kept_when_the_noise_is_corrected() -> None:
    model, raw, noise = torch.tensor([0.01, 0.01]), torch.tensor([0.05, 0.05]), torch.tensor([0.04, 0.20])
    torch.testing.assert_close(remaining_variance(model, raw, noise), torch.tensor([0.02, 0.0]))


def test_table_holds_one_law_per_image_with_a_floor() -> None:
    table = NoiseTable(torch.tensor([[0.02, 0.001], [1e-9, 1e-9]]))
    signal = torch.full((2, 1, 2, 2), 0.5)
    variance = table(signal, torch.tensor([0, 1]))
    torch.testing.assert_close(variance[0], torch.full((1, 2, 2), 0.011))
    torch.testing.assert_close(variance[1], torch.full((1, 2, 2), FLOOR))
    assert table.laws()[0] == pytest.approx((0.02, 0.001))


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_first_guess_is_near_on_white_noise(sigma: float) -> None:
    rng = np.random.default_rng(5)
    plane = (np.linspace(0.2, 0.8, 128)[:, None] + sigma * rng.standard_normal((128, 128))).astype(np.float32)
    a, b = first_guess(plane, 1)
    assert math.sqrt(a * float(np.median(plane)) + b) == pytest.approx(sigma, rel=0.05)


def test_first_guess_of_a_constant_is_positive() -> None:
    assert min(first_guess(np.full((16, 16), 0.5, np.float32), 2)) > 0
    assert min(first_guess(np.zeros((1, 1), np.float32), 2)) > 0


def test_likeliest_law_finds_the_noise_behind_a_known_model_variance() -> None:
    generator = torch.Generator().manual_seed(6)
    signal = torch.rand(1, 1, 200, 200, generator=generator)
    model = torch.full_like(signal, 2e-3)
    residual = (0.02 * signal + 0.004 + model).sqrt() * torch.randn(signal.shape, generator=generator)
    a, b = likeliest_law(residual, signal, model, (1e-3, 1e-2))
    assert a == pytest.approx(0.02, rel=0.1)
    assert b == pytest.approx(0.004, rel=0.15)
