"""The noise of low-resolution sets from the images alone, textured ones and few of them included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage import data as images

from training.data.noise import LAGS, NoiseLaw, Plane, add_noise, correlations, draw_kernel
from training.degradation.blind import blur, blur_kernel
from training.degradation.population import measure_noise, measure_population
from training.noise.correlation import REACH
from training.noise.population import read_population, write_population

RNG = np.random.default_rng


def blurred() -> list[Plane]:
    """Photographs at half their size, blurred: what noise they have is what is put on them."""
    photographs = [images.camera(), images.moon(), images.coins(), images.page(), images.clock(), images.text()]
    kernel = blur_kernel(np.array([1.5, 1.5]))
    return [np.ascontiguousarray(blur((one / 255).astype(np.float32), kernel)[::2, ::2]) for one in photographs]


def noisy(law: NoiseLaw, seed: int = 0) -> list[Plane]:
    rng = RNG(seed)
    return [add_noise(plane, law, rng) for plane in blurred()]


@pytest.mark.parametrize("level", [3 / 255, 8 / 255])
def test_level_of_white_noise(level: float) -> None:
    noise = measure_noise(noisy(NoiseLaw(0.0, level**2)))
    assert noise is not None
    assert float(np.median(noise.levels)) == pytest.approx(level, rel=0.1)
    beside = [noise.correlation[REACH + down, REACH + across] for down, across in LAGS]
    assert max(map(abs, beside)) < 0.15


def test_colour_of_noise() -> None:
    kernel = draw_kernel(RNG(3))
    noise = measure_noise(noisy(NoiseLaw(0.0, (10 / 255) ** 2, kernel)))
    assert noise is not None
    beside = [noise.correlation[REACH + down, REACH + across] for down, across in LAGS]
    np.testing.assert_allclose(beside, correlations(kernel), atol=0.12)
    np.testing.assert_allclose(correlations(noise.kernel), beside, atol=0.05)


def test_noise_that_grows_with_the_signal() -> None:
    law = NoiseLaw(2 * 0.9 * (12 / 255) ** 2, 0.1 * (12 / 255) ** 2)
    noise = measure_noise(noisy(law))
    assert noise is not None
    a, b = np.median(noise.laws, axis=0)
    for signal in (0.2, 0.7):
        assert np.sqrt(a * signal + b) == pytest.approx(np.sqrt(law.slope * signal + law.offset), rel=0.2)


def test_images_without_noise_have_none_to_measure() -> None:
    assert measure_noise([np.zeros((64, 64), np.float32)]) is None
    with pytest.raises(ValueError, match="no flat patch of empty"):
        measure_population({"empty": [np.zeros((64, 64), np.float32)]})


def test_population_draws_what_the_sets_have(tmp_path: Path) -> None:
    sets = {"quiet": noisy(NoiseLaw(0.0, (3 / 255) ** 2)), "none": [np.zeros((64, 64), np.float32)]}
    sets["mr"] = [np.abs(plane) for plane in noisy(NoiseLaw(0.0, (12 / 255) ** 2), 1)]
    population = measure_population(sets, {"mr": "MR", "quiet": "CT"})
    assert [(member.name, member.modality, member.rician) for member in population.sets] == [
        ("quiet", "CT", False),
        ("mr", "MR", True),
    ]
    write_population(tmp_path / "population.json", population)
    kept, rng = read_population(tmp_path / "population.json"), RNG(0)
    laws = [kept.draw(rng) for _ in range(300)]
    levels = 255 * np.sqrt([law.slope * 0.5 + law.offset for law in laws])
    assert 2 < np.quantile(levels, 0.25) < 6
    assert 6 < np.quantile(levels, 0.9) < 30
    assert 0.2 < np.mean([law.rician for law in laws]) < 0.8
