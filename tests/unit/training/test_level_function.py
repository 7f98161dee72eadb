"""The level of known noise from flat patches."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_run import scene
from training.data.noise import Kernel, NoiseLaw, add_noise, kernel_of_amplitude
from training.noise.correlation import FlatPatches, flat_patches
from training.noise.level_function import variance_factor
from training.noise.spectrum import correlation_of_kernel

DOWN, ACROSS = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")
KERNELS: dict[str, Kernel | None] = {
    "white": None,
    "ct": kernel_of_amplitude(np.exp(-2 * np.pi**2 * ((0.6 * DOWN) ** 2 + (0.8 * ACROSS) ** 2))),
    "mr": kernel_of_amplitude(np.exp(-2 * np.pi**2 * 2.25 * (DOWN**2 + ACROSS**2))),
}


def patches(law: NoiseLaw, seed: int) -> FlatPatches:
    clean = scene(seed, 320, 320)
    return flat_patches(add_noise(clean, law, np.random.default_rng(seed)), smooth=clean)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("wrong", [0.5, 1.0, 2.0])
def test_wrong_variance_is_put_right(name: str, wrong: float) -> None:
    """`mr` is as correlated as interpolated MR: a tenth of its variance goes with the patches' surfaces."""
    law = NoiseLaw(0.002, 0.001, KERNELS[name])
    told = (law.slope * wrong, law.offset * wrong)
    correlation = correlation_of_kernel(law.kernel)
    found = [variance_factor(patches(law, seed), told, correlation) for seed in range(8)]
    assert np.mean(found) * wrong == pytest.approx(1, abs=0.06)


def test_few_patches_and_absurd_laws_change_little() -> None:
    white = correlation_of_kernel(None)
    none = FlatPatches(np.empty((0, 24, 24), np.float32), np.empty(0, np.float32))
    assert variance_factor(none, (1e-3, 1e-3), white) == 1
    some = patches(NoiseLaw(0.0, 0.01), 0)
    assert variance_factor(some, (0.0, 1e-9), white) == 4
    assert variance_factor(some, (0.0, 10.0), white) == 0.01
