"""The noise laws: statistics, seeds, clipping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.noise import (
    LAGS,
    NoiseLaw,
    NoisePopulation,
    add_noise,
    clip_and_quantise,
    correlations,
    draw_kernel,
    kernel_correlation,
    kernel_of_amplitude,
    unit_noise,
)
from training.seeds import sample_generator


@pytest.mark.parametrize("signal", [0.0, 0.3, 0.9])
def test_variance_is_a_line_in_the_signal(signal: float) -> None:
    law = NoiseLaw(slope=0.01, offset=0.002)
    clean = np.full((400, 400), signal, dtype=np.float32)
    noise = add_noise(clean, law, sample_generator(0, 0, 0)) - clean
    assert noise.var() == pytest.approx(0.01 * signal + 0.002, rel=0.02)
    assert abs(noise.mean()) < 4 * np.sqrt(noise.var() / noise.size)


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_unit_noise_has_unit_variance_and_the_correlation_of_its_kernel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = draw_kernel(rng)
    noise = unit_noise((300, 280), kernel, rng)
    assert noise.shape == (300, 280)
    assert noise.var() == pytest.approx(1.0, rel=0.1)
    for down, across in [*LAGS, (1, 1), (3, 2)]:
        measured = float((noise[down:, across:] * noise[: 300 - down, : 280 - across]).mean())
        assert measured == pytest.approx(kernel_correlation(kernel, down, across), abs=0.1)


def test_unit_noise_is_stationary_up_to_the_edge() -> None:
    rng = sample_generator(1, 0, 0)
    kernel = kernel_of_amplitude(np.ones((32, 32)) / (1 + np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(32)])) * 20))
    samples = np.stack([unit_noise((20, 24), kernel, rng) for _ in range(3000)])
    np.testing.assert_allclose(samples.var(axis=0), 1.0, atol=0.2)
    assert abs(float((samples[:, 0] * samples[:, -1]).mean()) - kernel_correlation(kernel, 19, 0)) < 0.05  # no wrap


def test_white_noise_has_no_correlation_and_a_flat_spectrum_is_white() -> None:
    assert correlations(None) == [0.0] * 4
    np.testing.assert_allclose(correlations(kernel_of_amplitude(np.ones((32, 32)))), 0.0, atol=1e-6)


def test_rician_noise_is_a_magnitude() -> None:
    law = NoiseLaw(slope=0.0, offset=0.01, rician=True)
    background = add_noise(np.zeros((300, 300), np.float32), law, sample_generator(2, 0, 0))
    assert background.min() >= 0
    assert background.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh
    bright = add_noise(np.full((300, 300), 0.9, np.float32), law, sample_generator(2, 0, 1))
    assert bright.std() == pytest.approx(0.1, rel=0.02)
    assert bright.mean() == pytest.approx(np.hypot(0.9, 0.1), abs=0.01)


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
