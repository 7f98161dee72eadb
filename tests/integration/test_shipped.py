"""The shipped bundles do what their manifests promise, on images that were in no training set of theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data
from skimage.transform import downscale_local_mean, resize

from app.backends.base import Backend, load, self_test
from app.settings import SHIPPED_BUNDLES
from app.tiling import Tiling
from models.bundle import find_bundle, list_bundles, read_bundle

Plane = NDArray[np.float32]
FOLDERS = list_bundles(SHIPPED_BUNDLES)


def picture() -> Plane:
    """A retina (256, 256), reduced until its own noise is gone."""
    plane = downscale_local_mean(data.retina()[:1408, :1408, 1] / 255.0, (5, 5))[:256, :256]
    return np.ascontiguousarray(plane, dtype=np.float32)


def backend(name: str) -> Backend:
    return load("onnx", find_bundle(SHIPPED_BUNDLES, name), "cpu", "fp32", 2)


def denoise(runtime: Backend, plane: Plane, strength: float = 1.0) -> Plane:
    image = plane[None, None]
    parameters = runtime.run("estimate", {"image": image})["parameters"]
    told = {"parameters": parameters, "strength": np.array([strength], np.float32)}
    restored: Plane = runtime.run("restore", {"image": image, **told})["restored"][0, 0]
    return restored


def psnr(a: Plane, b: Plane) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def noisy(sigma: float) -> Plane:
    return picture() + np.random.default_rng(5).normal(0, sigma, picture().shape).astype(np.float32)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}@{f.name}")
@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_bundle_passes_its_self_test(folder: Path, name: str) -> None:
    bundle = read_bundle(folder)
    self_test(load(name, bundle, "cpu", "fp32", 2), bundle)


def test_all_tasks_are_served_within_the_size_that_was_promised() -> None:
    assert {folder.parent.name for folder in FOLDERS} >= {"denoise", "superresolve-x2", "superresolve-x4"}
    assert sum(f.stat().st_size for f in SHIPPED_BUNDLES.rglob("*") if f.is_file()) < 30e6


@pytest.mark.parametrize(("level", "gain"), [(5, 1.0), (25, 8.0), (50, 11.0)])
def test_denoiser_removes_white_noise_it_was_not_told_of(level: int, gain: float) -> None:
    image = noisy(level / 255)
    assert psnr(denoise(backend("denoise"), image), picture()) > psnr(image, picture()) + gain


@pytest.mark.parametrize("level", [5, 15, 50])
def test_estimate_is_right_within_a_tenth(level: int) -> None:
    parameters = backend("denoise").run("estimate", {"image": noisy(level / 255)[None, None]})["parameters"]
    slope, offset, floor, *_ = parameters[0]
    estimated = np.sqrt(np.maximum(slope * picture() + offset, floor).mean())
    assert estimated == pytest.approx(level / 255, rel=0.1)


def test_clean_image_is_left_alone() -> None:
    assert psnr(denoise(backend("denoise"), picture()), picture()) > 45


@pytest.mark.parametrize("gain", [1 / 64, 4.0])
def test_denoiser_is_indifferent_to_gain_and_pedestal(gain: float) -> None:
    runtime, image = backend("denoise"), noisy(0.1)
    expected = denoise(runtime, image)
    np.testing.assert_allclose(denoise(runtime, gain * image) / gain, expected, atol=2e-4)
    np.testing.assert_allclose(denoise(runtime, image + 0.5) - 0.5, expected, atol=2e-4)


def test_strength_zero_is_the_identity() -> None:
    assert np.array_equal(denoise(backend("denoise"), noisy(0.1), strength=0.0), noisy(0.1))


@pytest.mark.parametrize("scale", [2, 4])
def test_super_resolution_beats_interpolation_and_keeps_constants(scale: int) -> None:
    runtime = backend(f"superresolve-x{scale}")
    low = downscale_local_mean(picture(), (scale, scale)).astype(np.float32)
    restored = runtime.run("restore", {"image": low[None, None]})["restored"][0, 0]
    interpolated = resize(low, picture().shape, order=3, mode="edge").astype(np.float32)
    assert psnr(restored, picture()) > psnr(interpolated, picture()) + 0.5
    flat = runtime.run("restore", {"image": np.full((1, 1, 9, 7), 0.3, np.float32)})["restored"]
    np.testing.assert_allclose(flat, 0.3, atol=1e-5)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}@{f.name}")
@pytest.mark.parametrize("side", [64, 128, 192, 256, 512])  # matrices that scanners are fond of
def test_images_of_common_sizes_are_run_whole_and_unpadded(folder: Path, side: int) -> None:
    plan = Tiling().plan(read_bundle(folder), side, side)
    assert (plan.count, plan.shape) == (1, (side, side))
