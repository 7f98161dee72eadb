"""MATLAB's bicubic resizing: known weights, borders, and agreement with independent implementations inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from torch.nn import functional as F

from training.evaluation.imresize import Array, imresize, imresize_8bit

NEAR, SECOND, THIRD, FAR = 0.8671875, 0.2265625, -0.0703125, -0.0234375  # kernel at 0.25, 0.75, 1.25, 1.75 pixels
FACTORS = (0.25, 0.5, 2.0, 4.0)


def photograph(rows: int = 96, columns: int = 120) -> Array:
    return data.camera()[100 : 100 + rows, 150 : 150 + columns].astype(np.float64)


def weights(factor: float, output: int, length: int = 16) -> list[float]:
    """The weight of each pixel of a line in one output pixel: the answers to an impulse at each place."""
    lines = [np.repeat(np.eye(length)[:, [at]], 4, axis=1) for at in range(length)]
    return [float(imresize(line, factor)[output, 0]) for line in lines]


def test_an_impulse_shows_the_kernel() -> None:
    half = [FAR / 2, THIRD / 2, SECOND / 2, NEAR / 2]  # twice as wide, so half as high
    assert weights(0.5, 4)[5:13] == pytest.approx([*half, *half[::-1]])  # centred between inputs 8 and 9
    assert not any(weights(0.5, 4)[:5] + weights(0.5, 4)[13:])
    assert weights(2.0, 16)[6:10] == pytest.approx([FAR, SECOND, NEAR, THIRD])  # a quarter before input 8


def test_beyond_the_border_the_image_is_mirrored_with_its_edge_repeated() -> None:
    folded = [NEAR + SECOND, NEAR + THIRD, SECOND + FAR, THIRD, FAR]  # inputs -1, -2, -3 are 0, 1, 2
    assert weights(0.5, 0)[:5] == pytest.approx([weight / 2 for weight in folded])
    assert weights(2.0, 0)[:3] == pytest.approx([NEAR + SECOND, THIRD + FAR, 0.0])
    image = photograph()
    for factor in FACTORS:
        cut = round(16 * factor)
        padded = imresize(np.pad(image, 16, mode="symmetric"), factor)
        np.testing.assert_allclose(imresize(image, factor), padded[cut:-cut, cut:-cut], atol=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_pillow_agrees_inside(factor: float) -> None:
    image = photograph()
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    expected = np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    edge = max(2, round(3 * factor))  # outputs whose kernel reaches over the border
    inside = (slice(edge, -edge),) * 2
    np.testing.assert_allclose(imresize(image, factor)[inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize("factor", FACTORS)
def test_torch_agrees_inside(factor: float) -> None:
    image = photograph()
    size = [round(length * factor) for length in image.shape]
    tensor = torch.from_numpy(image)[None, None]
    expected = F.interpolate(tensor, size=size, mode="bicubic", align_corners=False, antialias=True)[0, 0].numpy()
    edge = max(2, round(3 * factor))
    inside = (slice(edge, -edge),) * 2
    np.testing.assert_allclose(imresize(image, factor)[inside], expected[inside], atol=1e-3)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([*FACTORS, 1 / 3, 3.0, 0.7]), st.floats(-5, 300))
def test_a_constant_stays_one_at_any_size(rows: int, columns: int, factor: float, value: float) -> None:
    resized = imresize(np.full((rows, columns), value), factor)
    assert resized.shape == (int(np.ceil(rows * factor)), int(np.ceil(columns * factor)))
    np.testing.assert_allclose(resized, value, atol=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_ramp_keeps_its_place(factor: float) -> None:
    ramp = np.add.outer(np.arange(64.0), 2 * np.arange(64.0))
    resized = imresize(ramp, factor)
    centres = (np.arange(len(resized)) + 0.5) / factor - 0.5  # pixel areas align
    inside = (slice(max(2, round(3 * factor)), -max(2, round(3 * factor))),) * 2
    np.testing.assert_allclose(resized[inside], np.add.outer(centres, 2 * centres)[inside], atol=1e-9)


def test_channels_are_resized_one_by_one() -> None:
    colour = data.astronaut()[:40, :52]
    resized = imresize(colour, 0.25)
    for channel in range(3):
        np.testing.assert_array_equal(resized[:, :, channel], imresize(colour[:, :, channel], 0.25))


def test_eight_bits_are_clipped_and_rounded_half_up() -> None:
    step = np.repeat([[0, 0, 0, 0, 255, 255, 255, 255]], 8, axis=0).astype(np.uint8)
    assert imresize(step, 2).min() < 0
    assert imresize(step, 2).max() > 255
    resized = imresize_8bit(step, 2)
    assert resized.dtype == np.uint8
    assert (resized.min(), resized.max()) == (0, 255)
    halves = np.repeat([[0, 1]], 2, axis=0).astype(np.uint8)
    assert imresize_8bit(halves, 0.5).tolist() == [[1]]  # 0.5, which numpy's rint would make 0


def test_a_factor_must_be_positive() -> None:
    with pytest.raises(ValueError, match="not positive"):
        imresize(photograph(), 0)
