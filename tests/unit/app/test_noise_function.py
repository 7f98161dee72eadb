"""The noise of a frame as a function of its signal."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import noise
from app.noise import NoiseFunction, estimate, first_equal, rms, sample_blocks
from models.errors import BundleInvalid
from models.imaging.image import ValueMap
from tests.unit.app.smoother import Smoother, bundle_of

some = st.floats(-10, 10)
scales = st.floats(1e-4, 1e2) | st.floats(-1e2, -1e-4)


@given(a=some, b=some, floor=st.floats(0, 10), x=some, scale=scales, offset=some, slope=scales, intercept=some)
def test_real_units_give_the_same_noise_at_the_same_signal(
    a: float, b: float, floor: float, x: float, scale: float, offset: float, slope: float, intercept: float
) -> None:
    values = ValueMap(scale, offset, slope, intercept)
    unit = NoiseFunction(a, b, floor)
    real = unit.in_real_units(values)
    signal = (x - offset) / scale * slope + intercept
    gain = values.real_per_unit
    variance = max(real.slope * signal + real.offset, real.floor)
    size = (abs(a) + abs(b) + floor) * gain**2 * (1 + abs(x) + abs(offset) + abs(intercept / gain))
    assert variance == pytest.approx(max(a * x + b, floor) * gain**2, rel=1e-6, abs=1e-9 * size)


def test_level_is_the_root_mean_square_over_measured_pixels() -> None:
    signal = np.array([[[0.0, 1.0], [2.0, 100.0]]], np.float32)
    mask = np.array([[True, True], [True, False]])
    assert NoiseFunction(3.0, -1.0, 0.5).level(signal, mask) == pytest.approx(np.sqrt((0.5 + 2 + 5) / 3))


def test_level_of_nothing_is_0() -> None:
    signal = np.ones((1, 2, 2), np.float32)
    assert NoiseFunction(0, 1, 0).level(signal, np.zeros((2, 2), bool)) == 0
    assert rms(signal, np.zeros((2, 2), bool)) == 0


def test_level_takes_no_root_of_a_negative_number() -> None:
    assert NoiseFunction(-5.0, 0.0, -1.0).level(np.ones((1, 2, 2), np.float32)) == 0


def test_parameters_go_by_name() -> None:
    names = ["variance_floor", "else", "variance_slope", "variance_offset"]
    parameters = np.array([3, 9, 1, 2], np.float32)
    assert NoiseFunction.of(parameters, bundle_of(parameters=names).manifest) == NoiseFunction(1, 2, 3)


def test_a_missing_parameter_is_named() -> None:
    manifest = bundle_of(parameters=["variance_slope", "variance_offset"]).manifest
    with pytest.raises(BundleInvalid, match="variance_floor"):
        NoiseFunction.of(np.zeros(2, np.float32), manifest)


def test_planes_are_averaged() -> None:
    planes = np.random.default_rng(0).normal(0, [[[1]], [[2]], [[3]]], (3, 50, 50)).astype(np.float32)
    alone = [asyncio.run(estimate(plane[None], Smoother()))[1] for plane in planes]
    common = asyncio.run(estimate(planes, Smoother()))
    np.testing.assert_allclose(common, [0, np.mean(alone), 0], rtol=1e-6)


def test_equal_planes_are_found() -> None:
    a, b = np.zeros((4, 4)), np.ones((4, 4))
    assert first_equal(np.stack([a, b, a])) == [0, 1, 0]
    assert first_equal(np.stack([a, a, a])) == [0, 0, 0]
    assert first_equal(np.stack([a])) == [0]


def test_a_huge_frame_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "WHOLE_FRAME_PIXELS", 1000)
    monkeypatch.setattr(noise, "BLOCK", 8)
    plane = np.arange(100 * 60, dtype=np.float32).reshape(100, 60)
    blocks = sample_blocks(plane)
    assert len(blocks) == 16
    assert {block.shape for block in blocks} == {(8, 8)}
    np.testing.assert_array_equal(blocks[0], plane[:8, :8])
    np.testing.assert_array_equal(blocks[-1], plane[-8:, -8:])


def test_saturated_background_of_a_huge_frame_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "WHOLE_FRAME_PIXELS", 1000)
    monkeypatch.setattr(noise, "BLOCK", 16)
    plane = np.zeros((128, 256), np.float32)
    plane[:, 128:] = np.random.default_rng(0).normal(100, 2, (128, 128))
    assert np.sqrt(asyncio.run(estimate(plane[None], Smoother()))[1]) == pytest.approx(2, rel=0.1)


def test_a_huge_constant_frame_has_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "WHOLE_FRAME_PIXELS", 1000)
    np.testing.assert_array_equal(asyncio.run(estimate(np.full((1, 600, 600), 7, np.float32), Smoother())), [0, 0, 0])


def test_padding_reaches_the_estimator_as_a_constant() -> None:
    """A smooth filling would look like a part of the image without noise."""
    measured = np.ones((24, 24), bool)
    measured[:, 12:] = False
    planes = np.random.default_rng(3).random((1, 24, 24), dtype=np.float32)
    runner = Smoother()
    asyncio.run(estimate(planes, runner, measured))
    ((_, arrays),) = runner.calls
    image = arrays["image"][0, 0]
    assert image.dtype == np.float32
    assert np.array_equal(image[measured], planes[0, measured])
    assert np.ptp(image[~measured]) == 0
