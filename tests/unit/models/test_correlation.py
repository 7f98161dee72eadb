"""Noise correlation against filters whose correlation is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.imaging.correlation import KEPT_MIN, NoiseCorrelation, noise_correlation, pooled_correlation

Array = np.ndarray[Any, Any]


def noise(rows: int = 320, columns: int = 320, seed: int = 0, down: int = 1, across: int = 1) -> Array:
    """White noise, averaged over `down` x `across` pixels: correlation max(0, 1 - lag / width)."""
    white = np.random.default_rng(seed).normal(size=(rows + down, columns + across))
    windows = np.lib.stride_tricks.sliding_window_view(white, (down, across))
    return windows.mean((2, 3))[:rows, :columns].astype(np.float32)


def figures(found: NoiseCorrelation | None) -> list[float]:
    assert found is not None
    return [found.x1, found.x2, found.y1, found.y2]


@pytest.mark.parametrize("seed", range(3))
def test_white_noise_is_uncorrelated(seed: int) -> None:
    assert figures(noise_correlation(noise(seed=seed))) == pytest.approx([0, 0, 0, 0], abs=0.03)


@pytest.mark.parametrize(
    ("down", "across", "expected"),
    [
        (1, 2, [1 / 2, 0, 0, 0]),
        (2, 1, [0, 0, 1 / 2, 0]),
        (3, 3, [2 / 3, 1 / 3, 2 / 3, 1 / 3]),
        (1, 4, [3 / 4, 1 / 2, 0, 0]),
    ],
)
def test_averaged_noise_has_its_known_correlation(down: int, across: int, expected: list[float]) -> None:
    found = noise_correlation(noise(down=down, across=across))
    assert figures(found) == pytest.approx(expected, abs=0.06)


def test_alternating_noise_is_negatively_correlated() -> None:
    white = noise(columns=321)
    found = noise_correlation(white[:, 1:] - white[:, :-1])
    assert found is not None
    assert found.x1 == pytest.approx(-0.5, abs=0.05)


def test_structure_and_gain_do_not_matter() -> None:
    rows, columns = np.mgrid[:320, :320] / 320
    anatomy = 40 * (np.hypot(rows - 0.5, columns - 0.5) < 0.3) + 5 * rows + 8 * columns**2
    plain, structured = noise(seed=1), noise(seed=1) + anatomy
    assert figures(noise_correlation(structured)) == pytest.approx(figures(noise_correlation(plain)), abs=0.05)
    assert figures(noise_correlation(structured / 4096)) == pytest.approx(
        figures(noise_correlation(structured)), abs=1e-3
    )


@pytest.mark.parametrize("level", [0.0, -1.0, 0.25])
def test_constant_background_is_left_out(level: float) -> None:
    plane = noise(down=3, across=3)
    plane[:, :200] = level
    assert figures(noise_correlation(plane)) == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3], abs=0.08)


def test_clipped_background_is_left_out() -> None:
    plane = noise(across=2) + 5
    plane[:160] -= 5 + 0.5
    found = noise_correlation(np.maximum(plane, 0))
    assert figures(found) == pytest.approx([0.5, 0, 0, 0], abs=0.06)


def test_padding_is_left_out() -> None:
    plane = noise(across=2)
    plane[:, 150:] = 1e-3 * noise()[:, 150:]  # by far the flattest part
    padding = np.zeros(plane.shape, bool)
    padding[:, 150:] = True
    assert figures(noise_correlation(plane, padding)) == pytest.approx([0.5, 0, 0, 0], abs=0.08)


@pytest.mark.parametrize(
    "plane",
    [np.zeros((200, 200)), np.full((1, 1), 3.0), noise(23, 400), noise(30, 30), np.tile([0.0, 1.0], (100, 50))],
    ids=["zero", "1x1", "too flat", "too few", "two values"],
)
def test_too_little_noise_gives_nothing(plane: Array) -> None:
    assert noise_correlation(plane) is None


def test_smooth_plane_without_noise_is_finite_or_nothing() -> None:
    rows, columns = np.mgrid[:200, :200]
    found = noise_correlation((rows**2 + rows * columns).astype(np.float32))
    assert found is None or np.isfinite(figures(found)).all()


def test_planes_are_pooled() -> None:
    planes = [noise(60, 60, seed) for seed in range(12)]
    alone, together = noise_correlation(planes[0]), pooled_correlation(planes)
    assert together is not None
    assert together.patches > (alone.patches if alone else KEPT_MIN - 1)
    assert figures(together) == pytest.approx([0, 0, 0, 0], abs=0.05)
    assert pooled_correlation([]) is None


def test_large_frames_are_sampled() -> None:
    found = noise_correlation(noise(1500, 1200, across=2))
    assert found is not None
    assert found.patches < 100
    assert found.x1 == pytest.approx(0.5, abs=0.05)
