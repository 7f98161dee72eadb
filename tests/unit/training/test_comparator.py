"""Classical estimators: right on images whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from training.comparator.noise_level import gradient_form, texture_strength, weak_texture
from training.data.noise import Plane


def flat(shape: tuple[int, int] = (256, 320)) -> Plane:
    return np.broadcast_to(np.linspace(0.2, 0.8, shape[1], dtype=np.float32), shape).copy()


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.2])
def test_weak_texture_finds_the_level_of_white_noise(sigma: float) -> None:
    noise = np.random.default_rng(3).standard_normal(flat().shape).astype(np.float32)
    assert weak_texture(flat() + np.float32(sigma) * noise) == pytest.approx(sigma, rel=0.04)


def test_weak_texture_is_not_misled_by_a_photograph() -> None:
    camera = data.camera()[:256, 128:384].astype(np.float32) / 255
    noise = np.random.default_rng(4).standard_normal(camera.shape).astype(np.float32)
    assert weak_texture(camera + np.float32(15 / 255) * noise) == pytest.approx(15 / 255, rel=0.05)


def test_weak_texture_of_images_without_noise() -> None:
    assert weak_texture(np.full((40, 40), 0.5, np.float32)) == pytest.approx(0, abs=1e-6)
    assert weak_texture(np.zeros((7, 7), np.float32)) == 0


def test_texture_strength_is_the_quadratic_form_of_each_patch() -> None:
    plane = np.random.default_rng(5).standard_normal((9, 11))
    strength = texture_strength(plane)
    assert strength.shape == (3, 5)
    patch = plane[2:9, 4:11].ravel()
    assert strength[2, 4] == pytest.approx(patch @ gradient_form() @ patch)
