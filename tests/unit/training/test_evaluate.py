"""Evaluation: the right answer scores right, and comparators are computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.evaluate
from training.data.noise import Plane
from training.evaluate import (
    Comparisons,
    degrade,
    denoising_table,
    estimate_table,
    evaluation_sets,
    hounsfield_table,
    markdown,
    superresolution_table,
)
from training.metric import psnr, ssim


def picture(rows: int = 48, columns: int = 64) -> Plane:
    grid = np.add.outer(np.arange(rows) / 7.0, np.arange(columns) / 5.0)
    return (0.5 + 0.4 * np.sin(grid)).astype(np.float32)


class Oracle:
    """Knows the clean image and the level."""

    def __init__(self, clean: Plane) -> None:
        self.clean = clean

    def restore(self, plane: Plane, *, eight_bit: bool = False) -> Plane:
        return self.clean

    def noise_level(self, plane: Plane) -> float:
        return float(np.std(plane - self.clean))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stands in for the slow comparators and counts how often it is asked."""
    asked: list[float] = []

    def nothing(noisy: Plane, sigma: float) -> Plane:
        asked.append(sigma)
        return noisy

    monkeypatch.setattr(training.evaluate, "COMPARATORS", {"BM3D": nothing})
    return asked


def test_psnr_and_ssim_of_known_errors() -> None:
    clean = picture()
    assert psnr(clean + np.float32(0.1), clean) == pytest.approx(20.0, abs=1e-3)
    assert psnr(clean, clean) == float("inf")
    assert ssim(clean, clean) == pytest.approx(1.0)
    assert ssim(degrade("s", "i", clean, 0.2, False).noisy, clean) < 0.7


def test_same_name_and_level_give_the_same_noise() -> None:
    a, b, c = (degrade("s", name, picture(), 0.1, False).noisy for name in ("x", "x", "y"))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    clipped = degrade("s", "x", picture(), 0.1, True).noisy * 255
    np.testing.assert_allclose(clipped, np.rint(clipped), atol=1e-4)


def test_tables_score_a_perfect_restorer(quick: list[float], tmp_path: Path) -> None:
    clean = picture()
    cases = [degrade("photographs", "a", clean, level / 255, False) for level in (15, 50)]
    cache = Comparisons(tmp_path / "cache.json")
    rows = denoising_table(cases, Oracle(clean), cache)
    assert [row["sigma"] for row in rows] == [15.0, 50.0]
    assert rows[0]["MedRestore"] == [float("inf"), pytest.approx(1.0)]
    assert rows[0]["noisy"][0] == pytest.approx(24.6, abs=0.3)
    denoising_table(cases, None, Comparisons(tmp_path / "cache.json"))
    assert len(quick) == 2  # the second time, both came from the file
    assert "| photographs | 15 | False | 1 |" in markdown(rows)


def test_hounsfield_and_estimate_tables(quick: list[float]) -> None:
    clean = picture()
    images = [("CT", "a", clean)]
    rows = hounsfield_table(images, Oracle(clean))
    assert [row["noise_hu"] for row in rows] == [0, 3, 10, 30, 100]
    assert rows[3]["before"] == pytest.approx(30, rel=0.05)
    assert rows[3]["MedRestore"] == 0
    assert all(row["MedRestore"] < 0.05 for row in estimate_table(images, Oracle(clean)))


def test_superresolution_table_sees_a_shift() -> None:
    high = picture(64, 64)
    shifted = np.roll(high, 1, axis=1)
    (straight,) = superresolution_table([("s", "a", high)], 2, lambda low: high)
    (moved,) = superresolution_table([("s", "a", high)], 2, lambda low: shifted)
    assert straight["shift"] < 0.02
    assert moved["shift"] == pytest.approx(1.0, abs=0.1)
    assert straight["MedRestore"][0] > straight["bicubic"][0] > 20


def test_sets_are_read_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(5):
        Image.fromarray(np.full((10, 14), i, np.uint8)).save(tmp_path / "a" / f"{i}.png")
    sets = tmp_path / "sets.toml"
    sets.write_text('[[photographs]]\nname = "A"\nfolder = "a"\n')
    found = list(evaluation_sets(tmp_path, sets, "photographs", 3))
    assert [(name, image, plane.shape) for name, image, plane in found] == [
        ("A", "0.png", (8, 12)),
        ("A", "2.png", (8, 12)),
        ("A", "4.png", (8, 12)),
    ]
