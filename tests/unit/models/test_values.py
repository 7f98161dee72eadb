"""Stored values to the unit scale and back: exact, limited, and with padding left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.imaging.image import Image, ValueMap
from models.imaging.raster import RasterSource, make_image
from models.imaging.values import fill, float_values, from_unit, integer_values, to_unit

Array = np.ndarray[Any, Any]

INTEGERS = ["uint8", "int8", "uint16", "int16"]
FLOATS = ["float32", "float64"]
finite = {"allow_nan": False, "allow_infinity": False}
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]))
pixel_arrays = st.sampled_from(INTEGERS + FLOATS).flatmap(
    lambda dtype: hnp.arrays(dtype, shapes, elements=finite if dtype in FLOATS else None)
)


@st.composite
def images(draw: st.DrawFn) -> Image:
    image = make_image(draw(pixel_arrays), "npy", RasterSource(), inverted=draw(st.booleans()))
    padding = draw(st.none() | hnp.arrays(bool, image.pixels.shape[:3]))
    return image.with_pixels(image.pixels, padding=padding)


def ct(pixels: list[int], padding: list[bool] | None = None, low: int = -32768, high: int = 32767) -> Image:
    """One row of CT: unit 0 is -1024 HU, unit 1 is 3071 HU, stored values are HU."""
    stored = np.array(pixels, np.int16).reshape(1, 1, -1, 1)
    mask = None if padding is None else np.array(padding).reshape(1, 1, -1)
    return Image(stored, ValueMap(1 / 4095, 1024 / 4095, unit="HU"), "dicom", low, high, padding=mask)


@given(images())
def test_no_change_is_bit_exact_for_every_type(image: Image) -> None:
    restored, clipped = from_unit(to_unit(image), image)
    assert clipped == 0
    assert restored.pixels.dtype == image.pixels.dtype
    assert restored.pixels.tobytes() == image.pixels.tobytes()
    assert restored.values == image.values


@given(images(), st.sampled_from([2, 4]))
def test_nearest_enlargement_is_exact_to_float32(image: Image, scale: int) -> None:
    enlarged, clipped = from_unit(to_unit(image).repeat(scale, 2).repeat(scale, 3), image, scale)
    expected = image.pixels.repeat(scale, 1).repeat(scale, 2)
    if np.issubdtype(expected.dtype, np.integer):
        assert clipped == 0
        assert np.array_equal(enlarged.pixels, expected)
    else:  # the largest finite values may round past the end, and are then limited
        assert np.allclose(enlarged.pixels, expected, rtol=2**-24, atol=float(np.abs(image.pixels).max()) * 2**-24)
    if image.padding is not None:
        mask = image.padding.repeat(scale, 1).repeat(scale, 2)
        assert np.array_equal(enlarged.padding, mask)
        assert enlarged.pixels[mask].tobytes() == expected[mask].tobytes()


@given(images(), st.integers(0, 2**32 - 1))
def test_any_answer_stays_within_the_stored_range_and_leaves_padding(image: Image, seed: int) -> None:
    unit = np.random.default_rng(seed).normal(0.5, 2.0, to_unit(image).shape).astype(np.float32)
    restored, clipped = from_unit(unit, image)
    assert 0 <= clipped <= restored.pixels.size
    assert np.isfinite(restored.pixels).all()
    assert restored.pixels.min() >= image.minimum
    assert restored.pixels.max() <= image.maximum
    if image.padding is not None:
        assert restored.pixels[image.padding].tobytes() == image.pixels[image.padding].tobytes()


@given(st.sampled_from(INTEGERS), st.booleans())
def test_integer_types_span_the_unit_range(dtype: str, inverted: bool) -> None:
    limits = np.iinfo(dtype)
    values = integer_values(np.dtype(dtype), inverted)
    ends = [limits.min * values.scale + values.offset, limits.max * values.scale + values.offset]
    assert ends == pytest.approx([1.0, 0.0] if inverted else [0.0, 1.0])
    assert values.real_per_unit == pytest.approx(limits.max - limits.min)


@given(hnp.arrays(st.sampled_from(FLOATS), st.integers(1, 20), elements=finite), st.booleans())
def test_float_scale_is_a_power_of_two_near_the_largest_value(pixels: Array, inverted: bool) -> None:
    values = float_values(pixels, inverted)
    assert np.frexp(abs(values.scale))[0] == 0.5
    assert (values.scale < 0) == inverted
    largest = float(np.abs(pixels).max())
    if 2.0**-1000 < largest < 2.0**1000:
        assert 0.5 <= largest * abs(values.scale) < 1
    assert np.isfinite(values.real_per_unit)


def test_unit_is_float32_and_inverted_sense_turns() -> None:
    image = make_image(np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1), "tiff", RasterSource(), inverted=True)
    unit = to_unit(image)
    assert unit.dtype == np.float32
    assert unit.shape == (1, 1, 1, 3)
    assert unit.ravel() == pytest.approx([1.0, 0.8, 0.0])


def test_samples_become_planes() -> None:
    pixels = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    unit = to_unit(make_image(pixels, "png", RasterSource()))
    assert np.allclose(unit[1, 2] * 255, pixels[1, :, :, 2])


def test_change_is_rounded_to_the_nearest_stored_value() -> None:
    image = ct([0, 0, 0, 0])
    unit = to_unit(image) + np.array([0.4, 0.6, -0.4, -0.6], np.float32) / 4095
    restored, clipped = from_unit(unit, image)
    assert restored.pixels.ravel().tolist() == [0, 1, 0, -1]
    assert clipped == 0


def test_values_beyond_the_stored_range_are_limited_and_counted() -> None:
    image = ct([-1000, 0, 3000, 3000], low=-1024, high=3071)
    restored, clipped = from_unit(to_unit(image) + np.array([-1, 0, 1, 0.01], np.float32), image)
    assert restored.pixels.ravel().tolist() == [-1024, 0, 3071, 3041]
    assert clipped == 2


def test_stored_value_beyond_the_range_stays_where_nothing_changed() -> None:
    image = ct([5000, 0], high=4000)
    restored, clipped = from_unit(to_unit(image), image)
    assert restored.pixels.ravel().tolist() == [5000, 0]
    assert clipped == 0


def test_float_overflow_is_limited_to_the_largest_finite_value() -> None:
    image = make_image(np.full((1, 1, 1, 1), 3e38, np.float32), "npy", RasterSource())
    restored, clipped = from_unit(to_unit(image) * 4, image)
    assert restored.pixels.item() == np.finfo(np.float32).max
    assert clipped == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answer_that_is_no_number_is_refused(value: float) -> None:
    image = ct([0, 1])
    unit = to_unit(image)
    unit[..., 0] = value
    with pytest.raises(FloatingPointError):
        from_unit(unit, image)


def test_scale_divides_the_spacing() -> None:
    image = make_image(np.zeros((1, 2, 2, 1), np.uint8), "png", RasterSource(), spacing_mm=(1.0, 0.5))
    assert from_unit(to_unit(image).repeat(2, 2).repeat(2, 3), image, 2)[0].spacing_mm == (0.5, 0.25)


# Padding


@pytest.mark.parametrize(("near", "far", "expected"), [(-1990, 40, -1999), (-2010, 40, -2001)])
def test_measured_pixel_never_ends_on_a_padding_value(near: int, far: int, expected: int) -> None:
    image = ct([-2000, near, far], [True, False, False])
    unit = to_unit(image)
    unit[..., 1] = -976 / 4095  # -2000 HU
    restored, _ = from_unit(unit, image)
    assert restored.pixels.ravel().tolist() == [-2000, expected, far]


def test_padding_at_the_end_of_the_type_is_avoided_too() -> None:
    pixels = np.array([0, 3, 255, 250], np.uint8).reshape(1, 1, 4, 1)
    for value, expected in ((0, [0, 1, 255, 250]), (255, [0, 3, 255, 254])):
        image = make_image(pixels, "png", RasterSource())
        image = image.with_pixels(pixels, padding=pixels[..., 0] == value)
        measured = slice(1, 2) if value == 0 else slice(3, 4)
        unit = to_unit(image)
        unit[..., measured] = value / 255
        restored = from_unit(unit, image)[0].pixels.ravel()
        assert restored[measured] == expected[measured.start]


def test_float_padding_value_is_avoided() -> None:
    pixels = np.array([-1.0, 0.5], np.float32).reshape(1, 1, 2, 1)
    image = make_image(pixels, "npy", RasterSource())
    image = image.with_pixels(pixels, padding=pixels[..., 0] == -1)
    unit = to_unit(image)
    unit[..., 1] = -1.0 * image.values.scale
    assert -1 < from_unit(unit, image)[0].pixels.ravel()[1] < -0.9999


@given(hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))), st.integers(0, 99))
def test_filling_keeps_measured_pixels_and_stays_within_their_range(mask: Array, seed: int) -> None:
    plane = np.random.default_rng(seed).normal(size=mask.shape)
    filled = fill(np.where(mask, -1e6, plane), mask)
    if mask.all():
        assert not filled.any()
        return
    assert np.array_equal(filled[~mask], plane[~mask])
    assert filled.min() >= plane[~mask].min() - 1e-9
    assert filled.max() <= plane[~mask].max() + 1e-9


def test_filling_makes_no_cliff_beside_the_measured_pixels() -> None:
    rows, columns = np.mgrid[:96, :96]
    outside = (rows - 48) ** 2 + (columns - 48) ** 2 > 44**2  # the round field of view of a CT
    smooth = np.sin(rows / 40) + columns / 96
    filled = fill(np.where(outside, -50.0, smooth), outside)
    steps = np.abs(np.diff(filled, axis=1))
    across = outside[:, 1:] != outside[:, :-1]
    assert steps[across].max() < 0.1  # the padding lies 50 below


def test_frame_of_padding_alone_is_zero_and_comes_back() -> None:
    image = ct([-2000, -2000], [True, True])
    assert not to_unit(image).any()
    restored, clipped = from_unit(to_unit(image) + 0.5, image)
    assert restored.pixels.ravel().tolist() == [-2000, -2000]
    assert clipped == 0
