"""The attention of SS-BSN: which pixels it mixes, with which weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.networks.blindness import own_derivatives
from models.networks.self_similarity import SelfSimilarBlindSpot, SelfSimilarity
from models.networks.subsampling import fold, unfold


def attention(channels: int = 8, stride: int = 4, heads: int = 2) -> SelfSimilarity:
    torch.manual_seed(0)
    return SelfSimilarity(channels, stride, heads).eval()


def test_forward_is_the_weights_times_the_input() -> None:
    module, x = attention(), torch.randn(2, 8, 13, 9)
    with torch.no_grad():
        weights = module.attention(x)
        assert weights.shape == (2 * 16, 2, 12, 12)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(32, 2, 12))
        mixed = (weights @ module.split(x)).transpose(2, 3).reshape(32, 8, 4, 3)
        torch.testing.assert_close(module(x), unfold(mixed, 4, 13, 9), atol=1e-6, rtol=0)


def test_padding_gets_no_weight() -> None:
    module, x = attention(), torch.randn(1, 8, 13, 9)
    outside = fold(torch.ones(1, 1, 13, 9), 4).flatten(2) == 0  # (16, 1, 12)
    with torch.no_grad():
        weights = module.attention(x)
    has_pixels = ~outside.all(dim=-1)[:, 0]
    assert not weights[has_pixels].masked_select(outside[has_pixels][:, :, None]).any()
    # and an image that needs padding is treated as its pixels alone would be
    ones = torch.ones(1, 8, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(module(ones), ones)


def test_only_congruent_pixels_are_mixed() -> None:
    module = attention()
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    module(x)[0, :, 5, 6].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(dim=0) > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[1::4, 2::4] = True
    assert torch.equal(seen, expected)


def test_temperature_is_learnt_and_limited() -> None:
    module, x = attention(heads=1), torch.randn(1, 8, 16, 16)
    assert math.isclose(float(module.temperature.detach()), math.log(10), rel_tol=1e-6)

    def entropy() -> float:
        """Of the attention, as a share of what uniform weights have."""
        weights = module.attention(x).detach()
        return float(-(weights * weights.clamp(min=1e-30).log()).sum(-1).mean() / math.log(weights.shape[-1]))

    def at(factor: float) -> float:
        with torch.no_grad():
            module.temperature.fill_(math.log(factor))
        return entropy()

    published = at(1 / math.sqrt(128))  # logits of (cos + 1) / sqrt(C): the 1 has no effect
    assert published > 0.999  # close to a mean over the phase
    assert at(10) < 0.9
    assert at(100) < at(10)
    assert at(1000) == at(100)


def test_statistics_over_space_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published normalisation over (C, H, W) is seen by the proof; ours passes it."""
    torch.manual_seed(0)
    network = SelfSimilarBlindSpot(channels=4, modules=1, attended=1)
    image, pixels = torch.rand(1, 1, 24, 24), [(12, 12), (0, 0)]
    assert own_derivatives(network, image, pixels)[0] == 0
    norm = F.layer_norm

    def over_space(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return norm(x, x.shape[1:])

    monkeypatch.setattr(F, "layer_norm", over_space)
    assert own_derivatives(network, image, pixels)[0] > 0


def test_options_that_contradict_are_named() -> None:
    with pytest.raises(ValueError, match="attended 3 must not exceed modules 2"):
        SelfSimilarBlindSpot(modules=2)
    with pytest.raises(ValueError, match="multiple of heads 3"):
        SelfSimilarBlindSpot(channels=8, heads=3)


def test_without_attention_the_radius_is_known() -> None:
    network = SelfSimilarBlindSpot(channels=8, modules=2, attended=0)
    assert network.radius == 14
    assert own_derivatives(network, torch.rand(1, 1, 33, 33))[0] == 0
