"""How well an enlargement, reduced again, agrees with its image: the operator, and what is judged."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data

from models.imaging.image import Image
from models.imaging.reduction import BEST_DB, agreement, reduced
from models.imaging.values import float_values, integer_values

Array = np.ndarray[Any, Any]
CAMERA = data.camera()[100:230, 100:260].astype(np.uint16) * 200


def image(pixels: Array, padding: Array | None = None) -> Image:
    """One frame (rows, columns) or (rows, columns, samples) of stored values."""
    whole = pixels.reshape(1, *pixels.shape[:2], -1)
    integer = np.issubdtype(pixels.dtype, np.integer)
    values = integer_values(pixels.dtype) if integer else float_values(pixels)
    limits = np.iinfo(pixels.dtype) if integer else np.finfo(pixels.dtype)
    return Image(whole, values, "npy", limits.min, limits.max, padding=None if padding is None else padding[None])


def enlarged(plane: Array, scale: int) -> Array:
    """Bicubic interpolation aligned by pixel area, by another implementation than ours; float64."""
    given = torch.from_numpy(plane.astype(np.float64))[None, None]
    whole = torch.nn.functional.interpolate(given, scale_factor=scale, mode="bicubic", align_corners=False)
    return whole[0, 0].numpy()


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("shape", [(7, 9), (33, 50), (1, 1), (2, 3), (1, 40)])
def test_it_is_the_reduction_that_training_uses(shape: tuple[int, int], scale: int) -> None:
    plane = np.random.default_rng(1).random((shape[0] * scale, shape[1] * scale))
    options: dict[str, Any] = {"mode": "bicubic", "align_corners": False, "antialias": True}
    expected = torch.nn.functional.interpolate(torch.from_numpy(plane)[None, None], size=shape, **options)[0, 0].numpy()
    np.testing.assert_allclose(reduced(plane, scale), expected, rtol=0, atol=1e-12)
    for start in range(0, shape[0], 5):
        rows = slice(start, min(start + 5, shape[0]))
        np.testing.assert_allclose(reduced(plane, scale, rows, gain=3.0), 3 * expected[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 4])
def test_it_moves_nothing(scale: int) -> None:
    """A ramp is where it was: the operator is aligned by pixel area."""
    rows, columns = np.mgrid[0 : 20 * scale, 0 : 30 * scale]
    ramp = reduced(3.0 * rows - 2.0 * columns, scale)
    centre = (scale - 1) / 2
    low = 3.0 * (np.arange(20) * scale + centre)[:, None] - 2.0 * (np.arange(30) * scale + centre)
    np.testing.assert_allclose(ramp[2:-2, 2:-2], low[2:-2, 2:-2], atol=1e-9)


def test_what_was_measured_is_the_psnr_of_the_frame_s_own_extent() -> None:
    low = CAMERA
    high = np.rint(enlarged(low, 2)).clip(0, 65535).astype(np.uint16)
    found = agreement(image(low), image(high), 2)
    off = reduced(high, 2) - low
    expected = 10 * np.log10(float(np.ptp(low)) ** 2 / np.mean(off**2))
    assert found.decibels == pytest.approx(expected, abs=1e-9)
    assert found.power**0.5 * 65535 == pytest.approx(np.sqrt(np.mean(off**2)))
    assert found.largest * 65535 == pytest.approx(np.abs(off).max())
    assert found.judged == low.size
    worse = agreement(image(low), image(np.roll(high, 2, axis=1)), 2)  # one pixel aside
    assert worse.decibels < found.decibels - 10


def test_colours_count_together() -> None:
    low = data.astronaut()[:60, :80]
    high = np.stack([np.rint(enlarged(plane, 2)) for plane in np.moveaxis(low, -1, 0)], -1).clip(0, 255)
    found = agreement(image(low), image(high.astype(np.uint8)), 2)
    assert found.judged == low.size
    spoilt = high.astype(np.uint8)
    spoilt[..., 2] //= 2
    assert agreement(image(low), image(spoilt), 2).decibels < found.decibels - 10


@pytest.mark.parametrize("scale", [2, 4])
def test_padding_and_what_is_made_of_it_are_left_out(scale: int) -> None:
    low = CAMERA.copy()
    padding = np.zeros(low.shape, bool)
    padding[:30], padding[:, -20:], padding[80, 60] = True, True, True
    high = np.rint(enlarged(low, scale)).clip(0, 65535).astype(np.uint16)
    clean = agreement(image(low, padding), image(high), scale)
    low[padding] = 0
    high[padding.repeat(scale, 0).repeat(scale, 1)] = 0
    found = agreement(image(low, padding), image(high), scale)
    assert found == clean
    assert found.judged == (low.shape[0] - 32) * (low.shape[1] - 22) - 25


def test_a_frame_of_padding_alone_agrees_and_one_that_cannot_be_judged_reaches_nothing() -> None:
    low, everywhere = np.full((9, 9), 7, np.uint16), np.ones((9, 9), bool)
    found = agreement(image(low, everywhere), image(low.repeat(2, 0).repeat(2, 1)), 2)
    assert (found.judged, found.decibels, found.reaches(60.0)) == (0, BEST_DB, True)
    everywhere[4, 4] = False
    found = agreement(image(low, everywhere), image(low.repeat(2, 0).repeat(2, 1)), 2)
    assert (found.judged, found.judgeable, found.reaches(0.0)) == (0, False, False)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_equality_is_told_as_a_number(dtype: str) -> None:
    low = np.full((12, 15), 90, dtype)
    found = agreement(image(low), image(low.repeat(2, 0).repeat(2, 1)), 2)
    assert found.power == pytest.approx(0.0, abs=1e-30)
    assert (found.decibels, found.reaches(BEST_DB)) == (BEST_DB, True)


def test_rounding_condemns_no_flat_frame_and_more_than_rounding_does() -> None:
    low = np.full((20, 20), 1000, np.int16)
    high = np.full((40, 40), 1000, np.int16)
    high[::2, ::2] += 1
    found = agreement(image(low), image(high), 2)
    assert found.decibels < 30
    assert found.reaches(60.0)
    assert not agreement(image(low), image(high + 3), 2).reaches(1.0)


def test_the_largest_values_of_a_type_do_no_harm() -> None:
    low = np.tile(np.array([[-1.7e308, 1.7e308]]), (8, 8))
    found = agreement(image(low), image(low.repeat(2, 0).repeat(2, 1)), 2)
    assert np.isfinite([found.power, found.largest, found.extent, found.decibels]).all()


def test_memory_is_bounded() -> None:
    low = np.zeros((1024, 1024), np.uint16)
    high = np.zeros((4096, 4096), np.uint16)
    tracemalloc.start()
    agreement(image(low), image(high), 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20  # one plane of float64 would be 128 MiB
