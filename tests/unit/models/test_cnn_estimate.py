"""CNN_est: the published noise model and its laws."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.networks.cnn_estimate import LAWS, NUDGE, CnnEstimate
from models.networks.denoiser import local_mean, noise_map


def trained(law: str) -> CnnEstimate:
    """With weights as a training might leave them: the variance depends on the input."""
    torch.manual_seed(3)
    network = CnnEstimate(law=law).eval()
    torch.nn.init.normal_(network.last.weight, std=0.5)
    return network


def ramp() -> torch.Tensor:
    return torch.linspace(0, 1, 40).expand(1, 1, 30, 40) + 0.02 * torch.randn(2, 1, 30, 40)


@pytest.mark.parametrize("law", sorted(LAWS))
def test_starts_at_five_grey_levels(law: str) -> None:
    variance = CnnEstimate(law=law).variance(ramp(), torch.ones(2, 1, 30, 40))
    start = F.softplus(torch.tensor(NUDGE - 4.0)) + 1e-3
    assert 4.8 < start * 255 < 5.2
    torch.testing.assert_close(variance, torch.full_like(variance, float(LAWS[law][0] * start**2)))


def test_gaussian_is_one_level_per_image_and_the_same_everywhere() -> None:
    """The published test script averages, then goes on with what it had not averaged."""
    network, y = trained("gaussian"), ramp()
    variance = network.variance(y, local_mean(y))
    assert torch.equal(variance, variance[:, :, :1, :1].expand_as(variance))
    assert variance[0, 0, 0, 0] != variance[1, 0, 0, 0]
    parameters = network(y)
    torch.testing.assert_close(parameters[:, 1], variance[:, 0, 0, 0])
    torch.testing.assert_close(parameters[:, 0], torch.zeros(2), atol=1e-7, rtol=0)
    assert not parameters[:, 3:].any()


def test_poisson_gaussian_is_a_line_with_no_negative_part() -> None:
    network, y = trained("poisson-gaussian"), ramp()
    zero, half, one = (network.variance(y, torch.full_like(y, s))[:, 0, 0, 0] for s in (0.0, 0.5, 1.0))
    assert (zero > 0).all()
    assert (one > zero).all()
    torch.testing.assert_close(half, (zero + one) / 2)
    with torch.no_grad():
        parameters = network(y)
    torch.testing.assert_close(parameters[:, 0], (one - zero).detach(), rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(parameters[:, 1], zero.detach(), rtol=1e-3, atol=1e-6)


def test_affine_std_is_quadratic_in_the_signal() -> None:
    network, y = trained("affine-std"), ramp()
    zero, half, one = (network.variance(y, torch.full_like(y, s)) for s in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half - zero, (one - zero) / 4)


def test_pixelwise_is_a_function_of_the_signal_alone() -> None:
    network, signal = trained("pixelwise"), torch.rand(1, 1, 9, 9)
    variance = network.variance(torch.rand(1, 1, 4, 4), signal)
    assert torch.equal(variance, network.variance(torch.zeros(1, 1, 7, 7), signal))
    shuffled = signal.flatten()[torch.randperm(81, generator=torch.Generator().manual_seed(0))]
    again = network.variance(signal, shuffled.reshape(1, 1, 9, 9)).flatten()
    torch.testing.assert_close(again.sort().values, variance.flatten().sort().values)
    assert variance.max() > variance.min()


@pytest.mark.parametrize("law", sorted(LAWS))
def test_parameters_are_a_fitted_line_of_the_variance(law: str) -> None:
    network, y = trained(law), ramp()
    with torch.no_grad():
        variance, fitted = network.variance(y, local_mean(y)), noise_map(y, network(y)) ** 2
    torch.testing.assert_close(fitted.mean(dim=(1, 2, 3)), variance.mean(dim=(1, 2, 3)), rtol=0.02, atol=1e-7)


@pytest.mark.parametrize("law", sorted(LAWS))
def test_constant_image_gives_finite_parameters(law: str) -> None:
    parameters = trained(law)(torch.full((1, 1, 8, 8), 0.3))
    assert torch.isfinite(parameters).all()
    assert parameters[0, 2] > 0


def test_unknown_law_is_named() -> None:
    with pytest.raises(ValueError, match="no law 'hg'; known: gaussian"):
        CnnEstimate(law="hg")
