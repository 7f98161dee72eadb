"""The networks of the denoise and super-resolve bundles: what is promised beyond `test_registry`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.networks.denoiser import LIMIT, Denoiser, noise_map
from models.networks.noise_level import NoiseLevel
from models.networks.ssformer import Attention
from models.networks.unet import NoiseMapUNet
from tests.small_network import DENOISERS, image, law, small, told

GAINS = (1 / 64, 1 / 8, 4.0)


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 8), (37, 61)])
def test_denoiser_keeps_any_size(name: str, size: tuple[int, int]) -> None:
    restored, noise = Denoiser(small(name))(image(*size), law(0.0, 0.01, 0.0), torch.ones(1))
    assert restored.shape == noise.shape == (1, 1, *size)
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("gain", GAINS)
def test_denoiser_is_homogeneous(name: str, gain: float) -> None:
    denoiser, y = Denoiser(small(name)), image()
    parameters, one = law(0.002, 0.004, 0.001), torch.ones(1)
    powers = torch.tensor([[gain, gain**2, gain**2, 1, 1, 1, 1]])
    with torch.no_grad():
        restored, noise = denoiser(y, parameters, one)
        scaled, scaled_noise = denoiser(gain * y, powers * parameters, one)
    assert (restored - y).abs().max() > 1e-3
    torch.testing.assert_close(scaled / gain, restored, atol=2e-5, rtol=0)
    torch.testing.assert_close(scaled_noise / gain, noise, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_is_blind_to_the_pedestal(name: str) -> None:
    denoiser, y, one = Denoiser(small(name)), image(), torch.ones(1)
    parameters = law(0.0, 0.01, 0.0)
    with torch.no_grad():
        change = denoiser(y, parameters, one)[0] - y
        raised = denoiser(y + 0.5, parameters, one)[0] - (y + 0.5)
    torch.testing.assert_close(raised, change, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", DENOISERS)
def test_strength_zero_and_no_noise_change_nothing(name: str) -> None:
    denoiser, y = Denoiser(small(name)), image()
    with torch.no_grad():
        assert torch.equal(denoiser(y, law(0.0, 0.01, 0.0), torch.zeros(1))[0], y)
        assert torch.equal(denoiser(y, torch.zeros(1, 7), torch.ones(1))[0], y)


def test_change_is_limited_by_the_noise() -> None:
    class Wild(nn.Module):
        def forward(self, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            return torch.full_like(image, 100.0)

    y = image()
    restored, noise = Denoiser(Wild())(y, law(0.0, 0.01, 0.0), torch.ones(1))
    torch.testing.assert_close(y - restored, LIMIT * noise)


@pytest.mark.parametrize("name", DENOISERS)
def test_batch_members_do_not_meet(name: str) -> None:
    denoiser, y = Denoiser(small(name)), image(batch=3)
    parameters = torch.cat([law(0.0, 0.01, 0.0), law(0.01, 0.0, 0.001), law(0.0, 0.0001, 0.0)])
    with torch.no_grad():
        together = denoiser(y, parameters, torch.ones(3))[0]
        alone = torch.cat([denoiser(y[i : i + 1], parameters[i : i + 1], torch.ones(1))[0] for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_noise_map_follows_the_law() -> None:
    y = torch.full((1, 1, 16, 16), 0.25)
    expected = torch.tensor(0.25 * 0.02 + 0.001).sqrt()
    torch.testing.assert_close(noise_map(y, torch.tensor([[0.02, 0.001, 0.0]])), expected.expand(1, 1, 16, 16))
    floor = noise_map(y, torch.tensor([[-1.0, 0.0, 0.0004]]))
    torch.testing.assert_close(floor, torch.full_like(floor, 0.02))


@pytest.mark.parametrize("gain", GAINS)
def test_noise_level_is_homogeneous(gain: float) -> None:
    network, y = small("noise-level"), image()
    with torch.no_grad():
        expected = network(y) * torch.tensor([[gain, gain**2, gain**2, 1, 1, 1, 1]])
        torch.testing.assert_close(network(gain * y), expected, rtol=2e-3, atol=1e-12)


def test_noise_level_of_a_constant_image_is_zero_and_finite() -> None:
    with torch.no_grad():
        found = noise_map(torch.full((1, 1, 9, 7), 0.3), small("noise-level")(torch.full((1, 1, 9, 7), 0.3)))
    assert torch.isfinite(found).all()
    assert found.max() < 2 / 255


def test_unet_radius_bounds_what_a_pixel_sees() -> None:
    network = small("noise-map-unet")
    assert isinstance(network, NoiseMapUNet)
    side = 2 * network.radius + 64
    y = image(side, side).requires_grad_()
    centre = side // 2
    network(y - 0 * y.mean(), told(side, side))[0, 0, centre, centre].backward()
    assert y.grad is not None
    # the mean that is taken off touches every pixel, but the head is blind to it: only rounding is left
    seen = (y.grad[0, 0].abs() > 1e-6 * y.grad.abs().max()).nonzero()
    reach = int((seen - centre).abs().max())
    assert 8 < reach <= network.radius


@pytest.mark.parametrize("sparse", [False, True])
def test_attention_partition_round_trip(sparse: bool) -> None:
    attention = Attention(16, 1, sparse)
    x = torch.randn(2, 16, 24, 40)
    assert torch.equal(attention.scatter(attention.gather(x)), x)


def test_sparse_attention_reaches_the_corners() -> None:
    network = small("ssformer")
    y = image(64, 64).requires_grad_()
    network(y, told(64, 64))[0, 0, 32, 32].backward()
    assert y.grad is not None
    assert y.grad[0, 0, 0, 0] != 0
    assert y.grad[0, 0, -1, -1] != 0


def test_a_small_input_leaves_no_trace() -> None:
    network, y = small("ssformer"), image(64, 64)
    noise = told(64, 64)
    with torch.no_grad():
        before = network(y, noise)
        network(image(1, 8), told(1, 8))
        assert torch.equal(network(y, noise), before)


def test_noise_level_has_spatial_support() -> None:
    """The same histogram, once smooth and once shuffled, gives different levels (unlike CNN_est)."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
    shuffled = ramp.flatten()[torch.randperm(64 * 64)].reshape(1, 1, 64, 64)
    network = NoiseLevel(16, 2).eval()
    with torch.no_grad():
        smooth, rough = (noise_map(x, network(x)).mean() for x in (ramp, shuffled))
    assert rough > 2 * smooth
