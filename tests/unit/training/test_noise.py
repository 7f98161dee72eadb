"""The noise laws: statistics, seeds, clipping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.noise import NoiseLaw, NoisePopulation, add_noise, clip_and_quantise, unit_noise
from training.seeds import sample_generator


@pytest.mark.parametrize("signal", [0.0, 0.3, 0.9])
def test_variance_is_a_line_in_the_signal(signal: float) -> None:
    law = NoiseLaw(slope=0.01, offset=0.002)
    clean = np.full((400, 400), signal, dtype=np.float32)
    noise = add_noise(clean, law, sample_generator(0, 0, 0)) - clean
    assert noise.var() == pytest.approx(0.01 * signal + 0.002, rel=0.02)
    assert abs(noise.mean()) < 4 * np.sqrt(noise.var() / noise.size)


@pytest.mark.parametrize("blur", [(0.0, 0.0), (0.7, 0.7), (0.0, 1.1), (0.4, 0.9)])
def test_unit_noise_has_unit_variance_and_the_correlation_of_its_kernel(blur: tuple[float, float]) -> None:
    noise = unit_noise((600, 500), blur, sample_generator(3, 0, 0))
    assert noise.shape == (600, 500)
    assert noise.var() == pytest.approx(1.0, rel=0.02)
    for axis, sigma in enumerate(blur):
        near = np.moveaxis(noise, axis, 0)
        measured = float((near[1:] * near[:-1]).mean())
        expected = np.exp(-0.25 / sigma**2) if sigma > 0.5 else None  # continuous Gaussian; coarse below half a pixel
        if sigma == 0:
            assert abs(measured) < 0.01
        elif expected is not None:
            assert measured == pytest.approx(expected, abs=0.05)
        else:
            assert measured > 0.05


def test_same_place_same_noise_other_place_other_noise() -> None:
    draws = {
        key: sample_generator(*key).standard_normal(4).tobytes() for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    }
    assert len(set(draws.values())) == 4
    assert sample_generator(0, 0, 1).standard_normal(4).tobytes() == draws[(0, 0, 1)]


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50)
def test_population_stays_in_its_range(seed: int, poisson: float, log_share: float) -> None:
    population = NoisePopulation(lowest=0.01, highest=0.2, poisson_share=poisson, log_share=log_share)
    law = population.draw(np.random.default_rng(seed))
    middle = law.slope * 0.5 + law.offset
    assert 0.01**2 * 0.999 <= middle <= 0.2**2 * 1.001
    assert law.slope >= 0
    assert law.offset >= 0


def test_population_refuses_an_empty_range() -> None:
    with pytest.raises(ValueError, match="lowest"):
        NoisePopulation(lowest=0.3, highest=0.1)


def test_clipping_keeps_to_the_format() -> None:
    noisy = np.array([[-0.2, 0.1004, 0.5, 1.3]], dtype=np.float32)
    np.testing.assert_array_equal(clip_and_quantise(noisy, None), np.float32([[0, 0.1004, 0.5, 1]]))
    grey = clip_and_quantise(noisy, 256) * 255
    np.testing.assert_allclose(grey, np.rint(grey), atol=1e-4)
