"""The noise report."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from app.analysis import NoiseReport, analyse
from models.errors import OptionError
from models.imaging.correlation import NoiseCorrelation
from models.imaging.image import Image
from tests.unit.app.smoother import COLOURED, Smoother, bundle_of, image_of, noisy


def report(image: Image, **changes: Any) -> NoiseReport:
    return asyncio.run(analyse(image, bundle_of(**changes), Smoother()))


def test_reports_white_noise_in_real_units() -> None:
    found = report(image_of(noisy(2, 128, 128, 1, sigma=25)))
    assert found.unit == "HU"
    assert found.whole.level == pytest.approx(25, rel=0.05)
    assert found.whole.function.offset == pytest.approx(625, rel=0.1)
    assert found.whole.correlation is not None
    assert abs(found.whole.correlation.x1) < 0.06
    assert found.whole.level_in_range
    assert found.whole.correlation_in_range is True
    assert len(found.frames) == 2


def test_correlated_noise_is_outside_of_white_training() -> None:
    white = np.random.default_rng(2).normal(0, 100, (128, 129))
    pixels = (1000 + (white[:, 1:] + white[:, :-1]) / 2).round().astype(np.int16)[None, :, :, None]
    white_model = report(image_of(pixels)).whole
    assert white_model.correlation is not None
    assert white_model.correlation.x1 == pytest.approx(0.5, abs=0.06)
    assert abs(white_model.correlation.y1) < 0.06
    assert white_model.correlation_in_range is False
    assert report(image_of(pixels), trained_correlation=(0.0, 0.6)).whole.correlation_in_range is True


def test_frames_are_pooled_by_power() -> None:
    frames = [noisy(1, 64, 64, 1, sigma=s) for s in (10, 70)]
    found = report(image_of(np.concatenate(frames)))
    levels = [frame.level for frame in found.frames]
    assert found.whole.level == pytest.approx(np.sqrt(np.mean(np.square(levels))))
    assert not report(image_of(frames[1]), trained_sigma=(0.0, 0.01)).whole.level_in_range


def test_a_constant_image_has_no_correlation() -> None:
    found = report(image_of(np.full((1, 40, 40, 1), 5, np.int16)))
    assert found.whole.level == 0
    assert found.whole.correlation is None
    assert found.whole.correlation_in_range is None


def test_padding_says_nothing() -> None:
    pixels = noisy(1, 128, 128, 1, sigma=25)
    padding = np.zeros((1, 128, 128), bool)
    padding[:, :, 100:] = True
    pixels[padding] = -2000
    found = report(image_of(pixels, padding=padding))
    assert found.whole.correlation is not None
    assert abs(found.whole.correlation.x1) < 0.1


def test_superresolution_estimates_nothing() -> None:
    with pytest.raises(OptionError, match="does not denoise"):
        report(image_of(noisy(1, 8, 8, 1)), task="superresolve", scale=2)


def test_the_model_s_own_estimate_of_the_correlation_goes_before_the_measured_one() -> None:
    bundle = bundle_of(parameters=COLOURED, trained_correlation=(0.0, 0.5))
    image = image_of(noisy(2, 64, 64, 1))
    found = asyncio.run(analyse(image, bundle, Smoother(colour=(0.25, 0.5, -0.125, 0.0625)))).whole
    assert found.correlation == NoiseCorrelation(x1=0.5, x2=0.0625, y1=0.25, y2=-0.125)
    assert found.correlation_in_range is True
    assert asyncio.run(analyse(image, bundle, Smoother(colour=(0.7, 0, 0, 0)))).whole.correlation_in_range is False


def test_without_noise_the_model_s_estimate_of_its_correlation_says_nothing() -> None:
    flat = np.full((1, 40, 40, 1), 5, np.int16)
    runner = Smoother(colour=(0.25, 0.5, 0.0, 0.0))
    bundle = bundle_of(parameters=COLOURED)
    assert asyncio.run(analyse(image_of(flat), bundle, runner)).whole.correlation is None
    mixed = np.concatenate([flat, noisy(1, 40, 40, 1)])
    found = asyncio.run(analyse(image_of(mixed), bundle, runner))
    assert [frame.correlation is None for frame in found.frames] == [True, False]
    assert found.whole.correlation == found.frames[1].correlation
