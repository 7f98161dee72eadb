"""The blind-spot networks: what they must not see, and what they were published to be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.networks.blind_spot import BlindSpotNetwork, DilatedBlindSpot, LightBlindSpot, MaskedConv
from models.networks.blindness import own_derivatives
from models.networks.self_similarity import SelfSimilarBlindSpot
from models.networks.subsampling import Subsampled
from training.export import fold

CORNERS = [(0, 0), (0, 40), (40, 0), (40, 40), (0, 20), (20, 20), (39, 1), (13, 27)]
TINY = {
    "full": lambda: DilatedBlindSpot(channels=6, modules=1),
    "light": lambda: LightBlindSpot(channels=6, modules=2),
    "self-similar": lambda: SelfSimilarBlindSpot(channels=4, modules=1, attended=1, heads=2),
}


def tiny(name: str, seed: int = 0) -> BlindSpotNetwork:
    torch.manual_seed(seed)
    return TINY[name]()


def picture(side: int = 41) -> torch.Tensor:
    return torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["full", "light", pytest.param("self-similar", marks=pytest.mark.slow)])
def test_no_pixel_sees_itself(name: str) -> None:
    own, other = own_derivatives(tiny(name), picture())
    assert own == 0
    assert other > 1e-3


def test_no_pixel_sees_itself_through_attention() -> None:
    """A sample of the pixels: the slow test above takes all, one backward pass each."""
    spread = [(row, column) for row in range(1, 41, 8) for column in range(3, 41, 9)]
    own, other = own_derivatives(tiny("self-similar"), picture(), CORNERS + spread)
    assert own == 0
    assert other > 1e-3


@pytest.mark.parametrize("name", sorted(TINY))
def test_without_the_mask_pixels_see_themselves(name: str) -> None:
    """The proof fails where it should."""
    network = tiny(name)
    for module in network.modules():
        if isinstance(module, MaskedConv):
            module.mask.fill_(1)
    assert own_derivatives(network, picture(), CORNERS)[0] > 1e-4


@pytest.mark.parametrize("mode", ["replicate", "reflect"])
def test_another_border_than_zeros_leaks(mode: str) -> None:
    network = tiny("light")
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.padding_mode = mode

    def forward(self: MaskedConv, x: torch.Tensor) -> torch.Tensor:
        side = self.padding[0]
        return F.conv2d(F.pad(x, [side] * 4, mode=mode), self.weight * self.mask, self.bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedConv, "forward", forward)
        assert own_derivatives(network, picture(), CORNERS)[0] > 1e-4


LEAKS = {
    "dense 3x3": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "instance norm": lambda: nn.InstanceNorm2d(6),
    "pooling": lambda: nn.AvgPool2d(3, stride=1, padding=1),
}


@pytest.mark.parametrize("leak", sorted(LEAKS))
def test_what_mixes_positions_leaks(leak: str) -> None:
    network = tiny("light")
    network.branches[0][0].insert(6, LEAKS[leak]())  # behind the masked part
    network.radius = None  # no longer true
    assert own_derivatives(network, picture(), CORNERS)[0] > 0


@pytest.mark.parametrize("name", ["full", "light"])
def test_radius_is_how_far_a_pixel_sees(name: str) -> None:
    network, side = tiny(name), 61
    y = picture(side).requires_grad_()
    sum(network(y))[0, 0, 30, 30].backward()
    assert y.grad is not None
    assert int((y.grad[0, 0].nonzero() - 30).abs().max()) == network.radius


def test_trained_weights_stay_blind_and_do_not_copy_the_noise() -> None:
    """The loss falls to the variance of the noise, not to zero: a leak would copy the input."""
    torch.manual_seed(1)
    network = LightBlindSpot(channels=8, modules=2)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        clean = F.interpolate(torch.rand(4, 1, 2, 2, generator=generator), size=(24, 24), mode="bilinear")
        noisy = clean + 0.2 * torch.randn(clean.shape, generator=generator)
        loss = (network(noisy)[0] - noisy).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert 0.04 < sum(losses[-20:]) / 20 < 0.05
    assert losses[0] > 0.15
    assert own_derivatives(network, picture(), CORNERS)[0] == 0


@pytest.mark.parametrize("name", sorted(TINY))
def test_model_variance_is_positive(name: str) -> None:
    mean, variance = tiny(name)(torch.zeros(2, 1, 9, 13))
    assert mean.shape == variance.shape == (2, 1, 9, 13)
    assert variance.min() >= 1e-8


@pytest.mark.parametrize("name", sorted(TINY))
def test_folding_the_masks_changes_nothing(name: str) -> None:
    network, y = tiny(name), picture()
    folded = fold(network)
    assert not any(isinstance(module, MaskedConv) for module in folded.modules())
    with torch.no_grad():
        for expected, found in zip(network(y), folded(y), strict=True):
            assert torch.equal(expected, found)


def test_mask_is_no_parameter_and_its_tap_gets_no_gradient() -> None:
    conv = MaskedConv(2, 5)
    conv(torch.rand(1, 2, 9, 9)).square().sum().backward()
    assert set(dict(conv.named_parameters())) == {"weight", "bias"}
    assert set(conv.state_dict()) == {"weight", "bias"}
    assert conv.weight.grad is not None
    assert not conv.weight.grad[..., 2, 2].any()
    assert conv.weight.grad.any()


def test_subsampled_network_is_blind_too() -> None:
    """Phases are not mixed: the proof holds for each stride."""
    network = Subsampled(tiny("light"), 2)
    assert own_derivatives(network, picture(), CORNERS)[0] == 0
