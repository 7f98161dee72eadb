"""DRAN: dynamic convolution, its temperature, its gates."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.networks.dynamic import COLD, HOT, DynamicConv, DynamicResidual, NoiseGate
from tests.small_network import image, told


def test_equals_one_kernel_per_image() -> None:
    torch.manual_seed(0)
    conv, x = DynamicConv(16, 4).eval(), torch.randn(3, 16, 12, 11)
    torch.nn.init.normal_(conv.conv.bias)  # type: ignore[arg-type]
    conv.temperature.fill_(1.0)
    with torch.no_grad():
        kernels, biases = conv.conv.weight.reshape(4, 16, 16, 3, 3), conv.conv.bias.reshape(4, 16)
        expected = [
            F.conv2d(x[i : i + 1], torch.einsum("k,koihw->oihw", pi, kernels), pi @ biases, padding=1)
            for i, pi in enumerate(conv.choice(x))
        ]
        for found in (conv.kernel_per_image(x), conv.output_per_kernel(x), conv(x)):
            torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def test_biases_start_at_zero() -> None:
    assert not DynamicConv(8, 4).conv.bias.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(("progress", "expected"), [(0.0, HOT), (0.05, 15.5), (0.1, COLD), (0.5, COLD), (1.0, COLD)])
def test_temperature_falls_over_the_first_tenth(progress: float, expected: float) -> None:
    network = DynamicResidual(channels=4, depth=1)
    network.anneal(progress)
    stored = [value for key, value in network.state_dict().items() if key.endswith("temperature")]
    assert len(stored) == 3
    assert all(math.isclose(float(value), expected, abs_tol=1e-4) for value in stored)


def test_choice_is_not_collapsed_and_sharpens_as_it_cools() -> None:
    torch.manual_seed(0)
    conv = DynamicConv(64, 4).eval()
    x = 4 * torch.randn(16, 64, 1, 1).expand(-1, -1, 8, 8)

    def entropy(temperature: float) -> float:
        conv.temperature.fill_(temperature)
        pi = conv.choice(x).detach()
        torch.testing.assert_close(pi.sum(dim=1), torch.ones(16))
        return float(-(pi * pi.log()).sum(dim=1).mean() / math.log(4))

    assert entropy(HOT) > 0.99
    assert 0.3 < entropy(COLD) < 0.98


def test_all_three_blocks_are_different_and_used() -> None:
    torch.manual_seed(0)
    network = DynamicResidual(channels=8, depth=1)
    torch.nn.init.normal_(network.tail.weight)
    y = image(16, 16)
    with torch.no_grad():
        before = network(y, told(16, 16))
        for block in network.blocks:
            kept = block.gate.value.weight.clone()
            block.gate.value.weight.zero_()
            assert not torch.equal(network(y, told(16, 16)), before)
            block.gate.value.weight.copy_(kept)
    assert len({id(p) for p in network.parameters()}) == 2 + 3 * (4 + 4)


def test_gate_is_the_published_product() -> None:
    torch.manual_seed(0)
    gate, x = NoiseGate(4), torch.randn(1, 4, 6, 7)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    value, opening = F.conv2d(padded, gate.value.weight, gate.value.bias), gate.gate(padded).sigmoid()
    torch.testing.assert_close(gate(x), F.leaky_relu(value * opening, 0.2))
    assert 0 < opening.min() < opening.max() < 1


def test_published_parameters_without_what_was_dropped() -> None:
    count = sum(p.numel() for p in DynamicResidual().parameters())
    norms, colours = 15 * 2 * 64, 2 * 3 * 64 * 9  # scale and shift after each convolution; 3 channels in, 3 out
    assert count == 2_458_944 - norms - colours + (6 + 1) * 64 * 9


def test_untrained_network_is_the_identity() -> None:
    assert not DynamicResidual(channels=4, depth=1)(image(9, 9), told(9, 9)).any()
