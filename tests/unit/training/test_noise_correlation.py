"""Correlation of noise at all small lags, against kernels whose correlation is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.noise import Kernel, Plane, kernel_of_amplitude, unit_noise
from training.noise.correlation import (
    REACH,
    FlatPatches,
    autocovariance,
    correlation_of_patches,
    flat_patches,
    measure_correlation,
    remove_surface,
    stride_of,
)
from training.noise.spectrum import correlation_of_kernel

DOWN, ACROSS = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")
KERNELS: dict[str, Kernel | None] = {
    "white": None,
    "anisotropic": kernel_of_amplitude(np.exp(-2 * np.pi**2 * ((0.4 * DOWN) ** 2 + (0.9 * ACROSS) ** 2))),
    "ramp": kernel_of_amplitude(np.hypot(DOWN, ACROSS) ** 0.6 * np.exp(-2 * np.pi**2 * 0.49 * (DOWN**2 + ACROSS**2))),
    "band limit": kernel_of_amplitude(((np.abs(DOWN) <= 0.35) & (np.abs(ACROSS) <= 0.25)).astype(float)),
}


def scene(side: int = 300) -> Plane:
    """Slow shading, two discs and a fine grating: flat in places."""
    y, x = np.mgrid[:side, :side] / side
    plane = 0.4 + 0.1 * np.sin(3 * y + 2 * x) + 0.3 * (np.hypot(y - 0.3, x - 0.4) < 0.15)
    plane += 0.2 * (np.hypot(y - 0.7, x - 0.6) < 0.2) * (1 + 0.5 * np.sin(120 * x))
    return plane.astype(np.float32)


def noisy_planes(kernel: Kernel | None, count: int = 6, level: float = 0.05) -> list[Plane]:
    return [
        scene() + np.float32(level) * unit_noise((300, 300), kernel, np.random.default_rng(i)) for i in range(count)
    ]


@pytest.mark.parametrize("name", KERNELS)
def test_correlation_of_noise_on_a_scene_is_found(name: str) -> None:
    found = measure_correlation(noisy_planes(KERNELS[name]))
    assert found is not None
    assert found.shape == (11, 11)
    assert found[REACH, REACH] == 1
    np.testing.assert_allclose(found, correlation_of_kernel(KERNELS[name]), atol=0.07)
    np.testing.assert_allclose(found, found[::-1, ::-1], atol=1e-12)


def test_denoised_image_tells_where_it_is_flat() -> None:
    """With the clean scene at hand even strongly correlated noise is measured without preferring quiet patches."""
    kernel = kernel_of_amplitude(np.exp(-2 * np.pi**2 * 1.69 * (DOWN**2 + ACROSS**2)))
    planes = noisy_planes(kernel)
    found = correlation_of_patches([flat_patches(plane, smooth=scene()) for plane in planes])
    blind = measure_correlation(planes)
    assert found is not None
    assert blind is not None
    true = correlation_of_kernel(kernel)
    assert np.abs(found - true).max() < np.abs(blind - true).max()
    np.testing.assert_allclose(found, true, atol=0.06)


def test_what_the_surface_took_is_put_back() -> None:
    """Averaged over many patches the inversion is exact; without it every lag would lie lower."""
    kernel = kernel_of_amplitude(np.exp(-2 * np.pi**2 * (DOWN**2 + ACROSS**2)))
    noise = unit_noise((24 * 30, 24 * 30), kernel, np.random.default_rng(1))
    patches = noise.reshape(30, 24, 30, 24).swapaxes(1, 2).reshape(-1, 24, 24)
    residual = remove_surface(patches)
    found = correlation_of_patches([FlatPatches(residual, residual.mean((1, 2)))])
    true = correlation_of_kernel(kernel)
    raw = np.median(autocovariance(residual) / autocovariance(residual)[:, 7:8, 7:8], axis=0)[2:-2, 2:-2]
    assert found is not None
    assert np.abs(found - true).max() < 0.03
    assert np.abs(raw - true).max() > 0.07


def test_gain_and_offset_do_not_matter() -> None:
    planes = noisy_planes(KERNELS["ramp"], 3)
    found, moved = measure_correlation(planes), measure_correlation([1000 + 500 * plane for plane in planes])
    np.testing.assert_allclose(found, moved, atol=0.02)  # float32 at 1000 has steps of 1e-4


@pytest.mark.parametrize(
    "plane", [np.zeros((200, 200)), np.full((100, 100), 3.0), np.ones((10, 40)), np.tile([0.0, 1.0], (64, 32))]
)
def test_planes_without_noise_give_nothing(plane: Plane) -> None:
    assert measure_correlation([plane.astype(np.float32)]) is None


def test_dark_patches_of_magnitude_images_are_left_out() -> None:
    """Rayleigh noise in the dark is less correlated than the Gaussian noise that it is made of."""
    kernel, rng = KERNELS["anisotropic"], np.random.default_rng(3)
    assert kernel is not None
    signal = np.where(np.arange(400) < 200, 0.0, 0.5)[None, :] * np.ones((400, 1))
    parts = [0.03 * unit_noise((400, 400), kernel, rng) for _ in range(2)]
    plane = np.hypot(signal + parts[0], parts[1]).astype(np.float32)
    bright = measure_correlation([plane], lowest_snr=3.0)
    everywhere = measure_correlation([plane[:, :200]])
    true = correlation_of_kernel(kernel)[REACH, REACH + 1]
    assert bright is not None
    assert everywhere is not None
    assert bright[REACH, REACH + 1] == pytest.approx(true, abs=0.06)
    assert everywhere[REACH, REACH + 1] < true - 0.08


def correlation_with(values: dict[tuple[int, int], float]) -> np.ndarray:
    correlation = np.zeros((11, 11))
    correlation[REACH, REACH] = 1
    for (down, across), value in values.items():
        correlation[REACH + down, REACH + across] = correlation[REACH - down, REACH - across] = value
    return correlation


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (1, True)),
        ({(0, 1): 0.09}, (1, True)),
        ({(0, 1): 0.4}, (2, True)),
        ({(1, 0): -0.4}, (2, True)),
        ({(0, 1): 0.6, (0, 2): 0.2}, (3, True)),
        ({(1, 1): 0.3, (2, 2): 0.2, (3, 3): 0.15}, (4, True)),
        ({(2, 0): 0.2, (0, 3): 0.2}, (4, True)),
        ({(0, 1): 0.9, (0, 2): 0.7, (0, 3): 0.5, (0, 4): 0.3, (0, 5): 0.12}, (5, False)),
        ({(0, 1): 0.6, (0, 2): 0.31, (0, 3): 0.3, (0, 4): 0.3, (0, 5): 0.3}, (2, False)),
    ],
)
def test_stride_leaves_noise_white(values: dict[tuple[int, int], float], expected: tuple[int, bool]) -> None:
    assert stride_of(correlation_with(values)) == expected


@given(st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_chosen_stride_is_the_smallest_that_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    correlation = rng.uniform(-0.3, 0.3, (11, 11)) * (rng.random((11, 11)) < 0.1)
    correlation[REACH, REACH] = 1
    stride, enough = stride_of(correlation)
    left = []
    for candidate in range(1, 6):
        lags = [lag for lag in range(-REACH, REACH + 1) if lag % candidate == 0]
        beside = [abs(correlation[REACH + d, REACH + a]) for d in lags for a in lags if (d, a) != (0, 0)]
        left.append(max(beside))
    assert enough == (min(left) < 0.1)
    if enough:
        assert left[stride - 1] < 0.1
        assert all(value >= 0.1 for value in left[: stride - 1])
