"""Pixel-shuffle downsampling and the refinement after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.networks.blind_spot import LightBlindSpot
from models.networks.subsampling import Subsampled, fold, lattice_masks, random_masks, replaced, unfold


@given(
    stride=st.integers(1, 6),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    batch=st.integers(1, 3),
    channels=st.integers(1, 2),
)
def test_round_trip_is_exact(stride: int, rows: int, columns: int, batch: int, channels: int) -> None:
    image = torch.arange(batch * channels * rows * columns).reshape(batch, channels, rows, columns).float() + 1
    phases = fold(image, stride)
    assert phases.shape == (batch * stride**2, channels, -(-rows // stride), -(-columns // stride))
    assert torch.equal(unfold(phases, stride, rows, columns), image)


def test_a_phase_is_every_stride_th_pixel() -> None:
    image = torch.arange(2 * 42).reshape(2, 1, 6, 7)
    phases = fold(image, 3)
    assert torch.equal(phases[0, 0], image[0, 0, ::3, ::3])
    assert torch.equal(phases[9 + 5, 0, :, :2], image[1, 0, 1::3, 2::3])
    assert not phases[9 + 5, 0, :, 2].any()  # padding: column 8 of 7


def test_subsampling_whitens_correlated_noise() -> None:
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    noise = torch.nn.functional.avg_pool2d(noise, 3, stride=1)

    def neighbours(x: Tensor) -> float:
        return float(np.corrcoef(x[..., :, 1:].flatten(), x[..., :, :-1].flatten())[0, 1])

    assert neighbours(noise) > 0.6
    assert abs(neighbours(fold(noise, 3)[0])) < 0.05


def test_subsampled_keeps_the_size_and_treats_phases_alone() -> None:
    torch.manual_seed(0)
    network = LightBlindSpot(channels=4, modules=1)
    image = torch.rand(2, 1, 13, 10)
    with torch.no_grad():
        mean, variance = Subsampled(network, 3)(image)
        assert mean.shape == variance.shape == image.shape
        torch.testing.assert_close(mean[1:, :, 2::3, 0::3], network(fold(image[1:], 3)[6:7])[0][..., :4, :4][:, :, :4])


def test_masks_are_fixed_and_of_the_published_share() -> None:
    masks = random_masks(200, 200)
    assert masks.shape == (8, 1, 200, 200)
    assert torch.equal(masks, random_masks(200, 200))
    assert not torch.equal(masks, random_masks(200, 200, seed=1))
    assert masks.float().mean(dim=(1, 2, 3)).sub(0.16).abs().max() < 0.01
    assert len({mask.numpy().tobytes() for mask in masks}) == 8


@pytest.mark.parametrize("size", [(1, 1), (7, 11), (12, 12)])
def test_lattice_covers_each_pixel_once(size: tuple[int, int]) -> None:
    masks = lattice_masks(*size)
    assert masks.shape == (6, 1, *size)
    assert torch.equal(masks.sum(dim=0), torch.ones(1, *size, dtype=torch.int64))


@pytest.mark.parametrize("masks", [random_masks(61, 63), lattice_masks(61, 63)], ids=["random", "lattice"])
def test_refinement_keeps_the_size_and_repeats_to_the_bit(masks: Tensor) -> None:
    torch.manual_seed(0)
    network = LightBlindSpot(channels=4, modules=1).eval()
    image = torch.rand(2, 1, 61, 63)

    def grown(x: Tensor) -> Tensor:
        """A denoiser that pads and does not crop."""
        return network(torch.nn.functional.pad(x, (0, 1, 0, 1)))[0]

    with torch.no_grad():
        first = replaced(grown, image, network(image)[0], masks)
        torch.manual_seed(9)
        assert torch.equal(replaced(grown, image, network(image)[0], masks), first)
    assert first.shape == image.shape


def test_refinement_is_the_mean_over_replaced_images() -> None:
    image, preliminary = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 6, 6)
    found = replaced(lambda x: x, image, preliminary, lattice_masks(6, 6))
    torch.testing.assert_close(found, image / 6 + preliminary * 5 / 6)
