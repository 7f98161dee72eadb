"""Evaluation on real noise: only what was noise may go, and pairs on other grey scales are still comparable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from training.comparator import denoiser
from training.data.noise import NoiseLaw, Plane, correlations, kernel_of_amplitude, unit_noise
from training.evaluation.flat import correlation, flat_pair, level
from training.evaluation.image import HeldBack
from training.evaluation.kernel import measure_kernels
from training.evaluation.pair import LEVELS, find_pairs, fitted, pair_table
from training.evaluation.real import real_table, untouched_table
from training.evaluation.score import Comparisons
from training.metric import psnr

SIDE = 240


def smooth() -> Plane:
    down, across = np.mgrid[:SIDE, :SIDE] / SIDE
    return (0.4 + 0.3 * down + 0.2 * across**2).astype(np.float32)


def coloured_noise(sigma: float = 0.03) -> Plane:
    down, across = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")
    kernel = kernel_of_amplitude(np.exp(-8 * (down**2 + 2 * across**2)))
    return np.float32(sigma) * unit_noise((SIDE, SIDE), kernel, np.random.default_rng(7))


class Remover:
    """Takes away a part of what it is told is there."""

    def __init__(self, part: Plane) -> None:
        self.part = part

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        return plane - self.part

    def noise_level(self, plane: Plane) -> float:
        return float(np.std(self.part))


def test_removing_the_noise_leaves_none_and_has_its_colour(tmp_path: Path) -> None:
    noise = coloured_noise()
    image = HeldBack("CT", "a b.png", smooth() + noise)
    blurred = gaussian_filter(noise, 2.0)
    rows = real_table([image], {"right": Remover(0.9 * noise), "slow part": Remover(blurred)}, tmp_path)
    right, slow = rows
    assert right["level before"] == pytest.approx(0.03, rel=0.2)
    assert right["level after"] == pytest.approx(0.1 * right["level before"], rel=0.02)
    assert right["lag 1 off"] < 0.02
    assert right["lags before"][1] > right["lags before"][0] > 0.2
    assert slow["lag 1 off"] > 0.1
    assert np.shape(right["correlations"]["removed"]) == (11, 11)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct_a-b_right.png", "ct_a-b_slow-part.png"]
    with Image.open(tmp_path / "ct_a-b_right.png") as panels:
        assert panels.size[1] == SIDE


def test_a_restorer_that_does_nothing_scores_as_such() -> None:
    (row,) = real_table([HeldBack("CT", "a", smooth() + coloured_noise())], {"idle": Remover(np.zeros(1, np.float32))})
    assert row["level after"] == row["level before"]
    assert row["change"] == 0
    assert row["lags removed"] is None
    assert row["lag 1 off"] is None


def test_nearly_clean_images_may_change_by_less_than_their_own_noise() -> None:
    noise = coloured_noise(0.002)
    image = HeldBack("MR", "a", smooth() + noise)
    half, twice = untouched_table([image], {"half": Remover(0.5 * noise), "twice": Remover(2 * noise)})
    assert half["share"] == pytest.approx(0.5, rel=0.25)
    assert twice["share"] == twice["largest share"] > 1.5


def test_too_small_or_constant_images_have_no_flat_patches() -> None:
    for plane in (np.zeros((10, 300), np.float32), np.full((60, 60), 0.5, np.float32)):
        pair = flat_pair(plane, plane)
        assert level(pair.before) is None
        assert correlation(pair.before) is None


def test_measured_kernels_make_the_noise_they_were_measured_on() -> None:
    images = [HeldBack("X-ray", name, smooth() + coloured_noise()) for name in "ab"]
    down, across = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")
    true = kernel_of_amplitude(np.exp(-8 * (down**2 + 2 * across**2)))
    (kernel,) = measure_kernels(images).values()
    assert np.sum(kernel**2) == pytest.approx(1, abs=1e-5)
    assert correlations(kernel) == pytest.approx(correlations(true), abs=0.08)
    with pytest.raises(ValueError, match="empty: too few flat patches"):
        measure_kernels([HeldBack("empty", "a", np.zeros((30, 30), np.float32))])


def save(path: Path, plane: Plane) -> None:
    Image.fromarray(np.rint(plane.clip(0, 1) * 255).astype(np.uint8)).save(path)


def test_pairs_are_found_by_name_and_scored_after_gain_and_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def nothing(noisy: Plane, sigma: float, kernel: object) -> Plane:
        asked.append(sigma)
        return noisy

    for name in ("BM3D", "NLM"):
        monkeypatch.setitem(denoiser.COMPARATORS, name, nothing)
    folder = tmp_path / "medical" / "oct"
    folder.mkdir(parents=True)
    noise = coloured_noise(0.1)
    save(folder / "s1_noisy.png", 0.45 * smooth() + 0.1 + noise)
    save(folder / "s1_clean.png", smooth())
    save(folder / "s2_noisy.png", smooth())  # without a partner
    comparisons = Comparisons()
    (row,) = pair_table(find_pairs(tmp_path), {"all of it": Remover(noise)}, comparisons)
    assert row["set"] == "medical/oct"
    assert row["pairs"] == 1
    assert row["all of it"][0] > 40  # the grey scale is no longer between them
    assert row["BM3D"] == row["noisy"]
    assert row["all of it over BM3D"] > 15
    assert len(asked) == 2 * len(LEVELS)
    pair_table(find_pairs(tmp_path), {}, comparisons)
    assert len(asked) == 2 * len(LEVELS)


def test_fitting_undoes_gain_and_offset_alone() -> None:
    clean = smooth()
    assert psnr(fitted(np.float32(0.45) * clean + np.float32(0.2), clean), clean) > 100
    assert psnr(fitted(clean**4, clean), clean) < 40
