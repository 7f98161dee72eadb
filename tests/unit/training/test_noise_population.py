"""Kernels from correlations, densities from points, and the population that stage 3 draws from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from training.data.noise import draw_kernel, kernel_correlation, unit_noise
from training.noise.correlation import REACH
from training.noise.mixture import FEW, Mixture, drop_outliers, fit_density, fit_mixture
from training.noise.population import LearnedPopulation, SetPopulation, Spread, read_population, write_population
from training.noise.spectrum import correlation_of_kernel, kernel_of_correlation, mixed_with_white, noise_power

RNG = np.random.default_rng
NEAR = slice(REACH - 2, REACH + 3)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_kernel_has_the_correlation_it_was_made_for(seed: int) -> None:
    wanted = correlation_of_kernel(draw_kernel(RNG(seed)))
    kernel = kernel_of_correlation(wanted)
    assert kernel.shape == (15, 15)
    assert np.square(kernel).sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)  # zero phase: it shifts nothing
    np.testing.assert_allclose(correlation_of_kernel(kernel)[NEAR, NEAR], wanted[NEAR, NEAR], atol=0.03)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_measured_correlation_that_no_noise_can_have_still_gives_a_kernel(seed: int) -> None:
    """Measurement errors make correlations that are not positive definite."""
    rng = RNG(seed)
    error = rng.normal(0, 0.02, (11, 11))
    wanted = correlation_of_kernel(draw_kernel(rng)) + (error + error[::-1, ::-1]) / 2
    wanted[REACH, REACH] = 1
    found = correlation_of_kernel(kernel_of_correlation(wanted))
    assert np.abs(found - wanted)[NEAR, NEAR].max() < 0.1


def test_correlation_of_a_kernel_agrees_with_lag_by_lag_sums() -> None:
    kernel = draw_kernel(RNG(5))
    found = correlation_of_kernel(kernel)
    for down in range(-REACH, REACH + 1):
        for across in range(REACH + 1):
            expected = kernel_correlation(kernel, down, across)
            assert found[REACH + down, REACH + across] == pytest.approx(expected, abs=1e-6)


def test_white_noise_has_a_flat_spectrum() -> None:
    np.testing.assert_allclose(noise_power(correlation_of_kernel(None)), 1.0)


def test_mixing_with_white_noise_scales_the_correlation() -> None:
    kernel = draw_kernel(RNG(7))
    expected = 0.6 * correlation_of_kernel(kernel)
    expected[REACH, REACH] = 1
    np.testing.assert_allclose(correlation_of_kernel(mixed_with_white(kernel, 0.4)), expected, atol=0.02)


def two_clusters(count: int) -> np.ndarray:
    rng = RNG(0)
    first = rng.multivariate_normal([-8, -9], [[0.1, 0.08], [0.08, 0.2]], count // 2)
    return np.concatenate([first, rng.multivariate_normal([-5, -6], [[0.05, 0], [0, 0.05]], count - count // 2)])


def test_number_of_components_is_found() -> None:
    assert len(fit_density(two_clusters(400)).weights) == 2
    assert len(fit_density(RNG(1).normal(size=(FEW, 2))).weights) == 1
    assert len(fit_density(RNG(1).normal(size=(FEW - 1, 2))).weights) > 100  # too few: a kernel density


def test_mixture_is_what_the_points_were_drawn_from() -> None:
    fit = fit_mixture(two_clusters(2000), 2)
    order = np.argsort(fit.means[:, 0])
    np.testing.assert_allclose(fit.means[order], [[-8, -9], [-5, -6]], atol=0.05)
    np.testing.assert_allclose(fit.covariances[order][0], [[0.1, 0.08], [0.08, 0.2]], atol=0.03)
    np.testing.assert_allclose(fit.weights, 0.5, atol=0.02)


@pytest.mark.parametrize("count", [1, 2, 5, 60, 400])
def test_draws_are_distributed_like_the_points(count: int) -> None:
    points, rng = two_clusters(count), RNG(2)
    density = fit_density(points)
    assert len(density.weights) == (count if count < 100 else len(density.weights))
    drawn = np.array([density.draw(rng) for _ in range(1000)])
    assert np.isfinite(drawn).all()
    if count >= 60:
        for axis in range(2):
            assert ks_2samp(points[:, axis], drawn[:, axis]).statistic < 0.15


def test_density_does_not_depend_on_a_few_gross_errors() -> None:
    points = RNG(3).normal(size=(500, 2))
    spoiled = np.concatenate([points, np.full((4, 2), 40.0)])
    assert len(drop_outliers(spoiled)) == 499
    np.testing.assert_allclose(fit_density(spoiled).means, fit_density(points).means, atol=0.1)


def population(**spread: float) -> LearnedPopulation:
    density = fit_density(np.log([[1e-3, 2e-3], [2e-3, 1e-3], [3e-3, 3e-3]]))
    low, high = np.log([1e-3, 1e-3]), np.log([3e-3, 3e-3])
    kernels = tuple(draw_kernel(RNG(i)) for i in (3, 4))
    ct = SetPopulation("ct", "CT", 3.0, False, density, low, high, kernels)
    mr = SetPopulation("mr", "MR", 1.0, True, density, low + 2, high + 2, ())
    return LearnedPopulation((ct, mr), Spread(**spread))


def test_population_survives_its_file(tmp_path: Path) -> None:
    made = population()
    write_population(tmp_path / "a.json", made)
    back = read_population(tmp_path / "a.json")
    write_population(tmp_path / "b.json", back)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    for seed in range(50):
        first, second = made.draw(RNG(seed)), back.draw(RNG(seed))
        assert first.slope == pytest.approx(second.slope, rel=1e-4)
        assert first.rician == second.rician
        np.testing.assert_allclose(first.parameters, second.parameters, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 100_000))
@settings(max_examples=100, deadline=None)
def test_draws_stay_in_the_widened_range(seed: int) -> None:
    law = population().draw(RNG(seed))
    shift = np.exp(2) if law.rician else 1.0
    for value in (law.slope, law.offset):
        assert 1e-3 / 2 * 0.999 <= value / shift <= 3e-3 * 2 * 1.001
    if law.kernel is not None:
        assert np.square(law.kernel).sum() == pytest.approx(1, abs=1e-3)
        assert unit_noise((40, 40), law.kernel, RNG(0)).shape == (40, 40)
    assert np.isfinite(law.parameters).all()


def test_draws_follow_weights_and_shares() -> None:
    made = population(foreign_share=0.0, white_share=0.2, mixed_share=0.0)
    laws = [made.draw(RNG(seed)) for seed in range(2000)]
    rician = [law for law in laws if law.rician]
    assert len(rician) / 2000 == pytest.approx(0.25, abs=0.03)
    assert all(law.kernel is None for law in rician)  # its set is white
    white = [law.kernel is None for law in laws if not law.rician]
    assert np.mean(white) == pytest.approx(0.2, abs=0.03)


def test_equal_seeds_draw_equal_laws() -> None:
    first, second, other = (population().draw(RNG(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.parameters, second.parameters)
    assert not np.array_equal(first.parameters, other.parameters)


def spoil(document: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split("/")
    for key in way:
        document = document[int(key) if key.isdigit() else key]  # type: ignore[index]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 2, "version"),
        ("sets", [], "at least one"),
        ("sets/0/weight", -1.0, "weight"),
        ("sets/0/rician", 1, "rician"),
        ("sets/0/highest", [5.0, 5.0], "highest"),
        ("sets/0/lowest", [0.0, 0.0], "lowest"),
        ("sets/0/lowest", [-7.0], "two numbers"),
        ("sets/0/kernels", [[[1.0, 0.0]]], "square"),
        ("sets/0/kernels", [[[2.0]]], "energy"),
        ("sets/0/density/weights", [0.5, 0.4, 0.4], "weights"),
        ("sets/0/density/covariances", [[[0.0, 0.0], [0.0, 0.0]]], "positive"),
        ("sets/0/density/means", [[1.0]], "shapes"),
        ("spread/white_share", 1.5, "shares"),
        ("spread/unknown", 1.0, "unknown"),
    ],
)
def test_damaged_file_is_refused_by_name(tmp_path: Path, path: str, value: Any, message: str) -> None:
    write_population(tmp_path / "a.json", population())
    document = json.loads((tmp_path / "a.json").read_text())
    spoil(document, path, value)
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as caught:
        read_population(tmp_path / "a.json")
    assert "a.json" in str(caught.value)


def test_mixture_density_integrates_to_one() -> None:
    mixture = Mixture(np.array([0.3, 0.7]), np.array([[0.0, 0.0], [1.0, 1.0]]), np.stack([np.eye(2), 0.5 * np.eye(2)]))
    y, x = np.mgrid[-7:8:150j, -7:8:150j]
    mass = np.exp(mixture.log_density(np.stack([y.ravel(), x.ravel()], axis=1))).sum() * (15 / 149) ** 2
    assert mass == pytest.approx(1, abs=1e-3)
