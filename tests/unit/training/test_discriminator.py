"""The discriminator: any size, layers of norm 1, state that is saved, mixed precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.small_network import image
from training.superresolution.discriminator import Discriminator, DiscriminatorConfig, SpectralConv

SIZES = [(8, 8), (9, 31), (33, 17), (64, 50), (101, 8)]


def discriminator(head: str = "patch", channels: int = 8, blocks: int = 7) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(channels, blocks, head))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("blocks", [1, 4, 7])
def test_any_size_gives_logits(size: tuple[int, int], blocks: int) -> None:
    x = image(*size, batch=2).requires_grad_()
    patches, pooled = (discriminator(head, blocks=blocks)(x) for head in ("patch", "pool"))
    shrunk = [-(-side // 2 ** (blocks // 2)) for side in size]
    assert patches.shape == (2, 1, *shrunk)
    assert pooled.shape == (2, 1, 1, 1)
    (gradient,) = torch.autograd.grad(patches.sum() + pooled.sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.any()


def test_size_is_that_of_the_published_one_without_its_last_layer() -> None:
    """13,013,249 parameters, of which 2,097,153 belong to a layer that fits 512x512 alone."""
    found = sum(weight.numel() for weight in discriminator(channels=64).parameters())
    assert found == 13_013_249 - 2_097_153 + 513


def test_every_layer_with_weights_has_norm_one() -> None:
    network = discriminator()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)  # as a training would
    for _ in range(20):
        network(image(16, 16))
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 16
    for layer in layers:
        assert isinstance(layer, SpectralConv)
        norm = torch.linalg.matrix_norm(layer.normalised().detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1, abs=0.02)


def test_a_head_changes_by_no_more_than_its_input() -> None:
    """A 1x1 convolution's norm is that of its matrix: it is Lipschitz with constant 1."""
    head = discriminator().head.eval()
    first, second = torch.randn(2, 1, 64, 5, 5, generator=torch.Generator().manual_seed(0))
    assert (head(first) - head(second)).norm() <= 1.001 * (first - second).norm()


def test_gradient_reaches_the_weight_through_its_norm() -> None:
    """The loss cannot be lowered by scaling a weight up: its gradient is orthogonal to it."""
    layer = SpectralConv(4, 8, 3)
    for _ in range(200):
        layer.iterate()
    layer.eval()
    layer(image(9, 9).expand(1, 4, 9, 9)).square().sum().backward()
    weight, gradient = layer.weight.detach(), layer.weight.grad
    assert gradient is not None
    assert gradient.any()
    assert abs(float((weight * gradient).sum())) < 1e-3 * float(weight.norm() * gradient.norm())


def test_power_iteration_moves_in_training_alone_and_is_saved() -> None:
    network = discriminator()
    with torch.no_grad():
        network.first.weight.copy_(torch.randn_like(network.first.weight))
    before = copy.deepcopy(network.state_dict())
    network.eval()(image(16, 16))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    network.train()(image(16, 16))
    assert not torch.equal(before["first.left"], network.first.left)
    other = discriminator(channels=8)
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(image(16, 16)), other(image(16, 16)))


def test_two_passes_before_a_step_have_their_own_gradients() -> None:
    network = discriminator(blocks=2)
    (F.softplus(-network(image(16, 16))).mean() + F.softplus(network(image(18, 20))).mean()).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_mixed_precision_keeps_norms_and_gradients_in_float32() -> None:
    network, x = discriminator(blocks=3), image(32, 32)
    network.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(x)
    torch.testing.assert_close(mixed.float(), network(x), atol=0.05, rtol=0.05)
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(x).float().mean().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in network.parameters())
    assert network.first.left.dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"head": "linear"}, {"blocks": 8}, {"channels": 0}, {"gain": 0.0}])
def test_contradictions_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DiscriminatorConfig(**wrong)  # type: ignore[arg-type]
