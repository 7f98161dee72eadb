"""Balanced attention: two gates, side by side."""

from __future__ import annotations

import pytest
import torch

from models.networks.balanced import BalancedAttention
from models.networks.ssformer import SSFormer


@pytest.mark.parametrize(("channels", "published"), [(64, 565), (256, 8_257)])
def test_published_parameters(channels: int, published: int) -> None:
    assert sum(p.numel() for p in BalancedAttention(channels).parameters()) == published


def test_gates_lie_between_zero_and_one_and_differ_by_channel_and_place() -> None:
    torch.manual_seed(0)
    channel, place = BalancedAttention(16).gates(torch.randn(2, 16, 9, 7))
    assert channel.shape == (2, 16, 1, 1)
    assert place.shape == (2, 1, 9, 7)
    for gate in (channel, place):
        assert 0 < gate.min() < gate.max() < 1


def test_starts_near_one_not_at_a_quarter() -> None:
    module, x = BalancedAttention(16), torch.randn(1, 16, 5, 5)
    torch.nn.init.zeros_(module.channel[2].weight)
    torch.nn.init.zeros_(module.place.weight)
    expected = torch.sigmoid(torch.tensor(2.0)) ** 2
    torch.testing.assert_close(module(x), x * expected)
    assert expected > 0.75


def test_few_channels_keep_a_middle() -> None:
    assert BalancedAttention(8).channel[0].out_channels == 4


def test_ssformer_has_it_by_option_only() -> None:
    plain, balanced = (SSFormer(channels=16, groups=2, blocks=2, balanced=b) for b in (False, True))
    extra = set(balanced.state_dict()) - set(plain.state_dict())
    assert {key.split(".")[2] for key in extra} == {"balance"}
    assert len(extra) == 2 * 4
