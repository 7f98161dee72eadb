"""Super-resolvers: what each promises beyond `test_registry`, which covers sizes, batches, bits and export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from skimage.registration import phase_cross_correlation
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.registry import build_network
from models.networks.ssformer import Attention
from models.networks.swinir import ShiftedAttention, crossing_mask, windows
from models.networks.upscaler import interpolate
from tests.small_network import SCALES, SMALL, UPSCALERS, image, small

LABELS = sorted(SCALES)
CLASSICAL = ("residual-upscaler x2", "residual-upscaler x4")
NORMALISED = [label for label in LABELS if label not in CLASSICAL]


def photograph(side: int = 128) -> Tensor:
    """A photograph with texture, (1, 1, side, side), unit scale."""
    plane = skimage.data.camera()[100 : 100 + side, 200 : 200 + side].astype(np.float32) / 255
    return torch.from_numpy(plane)[None, None]


def reduced(high: Tensor, scale: int) -> Tensor:
    """(B, 1, sH, sW) -> (B, 1, H, W) on the pixel-area grid."""
    return F.interpolate(high, scale_factor=1 / scale, mode="bicubic", align_corners=False, antialias=True)


@pytest.mark.parametrize("label", NORMALISED)
def test_an_untrained_network_is_bicubic_interpolation(label: str) -> None:
    y = image(13, 9, batch=2)
    with torch.no_grad():
        found = build_network(*SMALL[label])(y)
    expected = F.interpolate(y, scale_factor=SCALES[label], mode="bicubic", align_corners=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("value", [0.0, 0.6, -3.0])
def test_a_constant_image_stays_constant(label: str, value: float) -> None:
    y = torch.full((2, 1, 13, 9), value, requires_grad=True)
    out = small(label)(y)
    torch.testing.assert_close(out, torch.full_like(out, value), atol=5e-6, rtol=0)
    (gradient,) = torch.autograd.grad(out.square().sum(), y)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("label", LABELS)
def test_pedestal_and_gain_do_not_matter(label: str) -> None:
    network, y = small(label), image(24, 40)
    with torch.no_grad():
        added = network(y) - interpolate(y, SCALES[label])
        other = 4 * y + 0.5
        found = (network(other) - interpolate(other, SCALES[label])) / 4
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(found, added, atol=2e-5, rtol=0)


@pytest.mark.parametrize("label", LABELS)
def test_bfloat16_trains(label: str) -> None:
    network, y = small(label).train(), image(16, 24, batch=2)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(y)
    out.float().square().sum().backward()
    assert out.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("label", LABELS)
def test_nothing_is_shifted(label: str) -> None:
    """Trained for a moment on a photograph, then compared with bicubic interpolation by phase correlation."""
    torch.manual_seed(0)
    network, high = build_network(*SMALL[label]), photograph()
    low = reduced(high, SCALES[label])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = F.l1_loss(network(low), high)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found, expected = network(low)[0, 0], interpolate(low, SCALES[label])[0, 0]
    assert losses[-1] < losses[0]
    assert not torch.equal(found, expected)
    shift, _, _ = phase_cross_correlation(expected.numpy(), found.numpy(), upsample_factor=100)
    assert np.abs(shift).max() < 0.05


def test_only_networks_that_tile_exactly_claim_it() -> None:
    assert {label for label in LABELS if small(label).exact_tiling} == set(CLASSICAL)


@pytest.mark.parametrize("label", CLASSICAL)
def test_radius_bounds_what_a_pixel_sees(label: str) -> None:
    network: Any = small(label)
    centre = 2 * network.radius
    y = image(4 * network.radius, 4 * network.radius).requires_grad_()
    network(y)[0, 0, centre * SCALES[label], centre * SCALES[label]].backward()
    assert y.grad is not None
    reach = (y.grad[0, 0].nonzero() - centre).abs().max()
    assert network.radius - 2 <= reach <= network.radius


@pytest.mark.parametrize("label", ["ssformer-upscaler x2", "ssformer-upscaler halved", "nlsa-upscaler x4"])
def test_attention_reaches_the_corners(label: str) -> None:
    network: Any = small(label)
    x = image(64, 64).requires_grad_()
    told = (x, x.detach()) if label.startswith("nlsa") else (x,)
    middle = 32 * SCALES[label]
    network.detail(*told)[0, 0, middle, middle].backward()
    assert x.grad is not None
    assert x.grad[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].all()


def test_shifted_windows_reach_further_layer_by_layer() -> None:
    reaches = []
    for blocks in (2, 4):
        torch.manual_seed(0)
        network: Any = build_network("swinir-light", {"scale": 2, "channels": 12, "groups": 1, "blocks": blocks})
        nn.init.normal_(network.tail[0].weight)
        x = image(64, 64).requires_grad_()
        network.detail(x)[0, 0, 64, 64].backward()
        reaches.append(int((x.grad[0, 0].nonzero() - 32).abs().max()))  # type: ignore[index]
    assert 8 < reaches[0] < reaches[1] < 32


def test_window_partition_is_that_of_the_attention() -> None:
    attention, x = Attention(16, 1, sparse=False), torch.arange(16.0 * 24).reshape(16, 24)
    tokens = attention.gather(x[None, None])
    assert torch.equal(windows(x), tokens.reshape(6, 64))
    assert torch.equal(attention.scatter(tokens)[0, 0], x)


def test_a_shifted_window_does_not_see_across_the_border() -> None:
    torch.manual_seed(0)
    attention = ShiftedAttention(16, 2, shift=4)
    x = torch.randn(1, 16, 24, 24, requires_grad=True)
    attention(x, crossing_mask(x))[0, :, 1, 1].sum().backward()
    seen = x.grad[0].abs().amax(dim=0) > 0  # type: ignore[index]
    assert seen[:4, :4].all()
    assert seen.sum() == 16
    attention(x, torch.zeros(1, 1, 64, 64))[0, :, 1, 1].sum().backward()
    assert (x.grad[0, :, -4:, -4:] != 0).any()  # type: ignore[index]


def test_position_bias_follows_the_offset_alone() -> None:
    attention = ShiftedAttention(16, 2, shift=0)
    down, across = attention.offsets // 15 - 7, attention.offsets % 15 - 7
    place = torch.arange(64)
    assert torch.equal(down, place[:, None] // 8 - place[None, :] // 8)
    assert torch.equal(across, place[:, None] % 8 - place[None, :] % 8)


@pytest.mark.parametrize("name", ["blimsr", "nlsa-upscaler", "swinir-light"])
def test_colours_are_restored_together(name: str) -> None:
    options = SMALL[f"{name} x2"][1] | {"colours": 3}
    y = torch.rand(2, 3, 11, 7)
    with torch.no_grad():
        found = build_network(name, options)(y)
    assert torch.equal(found, interpolate(y, 2))


@pytest.mark.parametrize("name", sorted(UPSCALERS))
def test_other_scales_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="scale 3 is neither 2 nor 4"):
        build_network(name, SMALL[f"{name} x2"][1] | {"scale": 3})


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="channels 20 must be a multiple of 16"):
        build_network("ssformer-upscaler", {"scale": 2, "channels": 20})
    with pytest.raises(ValueError, match="channels 20 must be a multiple of heads 6"):
        build_network("swinir-light", {"scale": 2, "channels": 20})
    with pytest.raises(ValueError, match="blocks 9 must be a multiple of every 8"):
        build_network("nlsa-upscaler", {"scale": 2, "blocks": 9})
