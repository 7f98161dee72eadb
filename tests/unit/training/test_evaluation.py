"""Evaluation: the right answer scores right, and comparators are computed once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from skimage import data

from training.comparator import denoiser
from training.data.noise import Kernel, NoiseLaw, Plane
from training.evaluation.ablation import ablation_table, noises
from training.evaluation.case import Noise, coloured, degrade, degrade_all, poisson_gaussian, white
from training.evaluation.coloured import coloured_table
from training.evaluation.command import main
from training.evaluation.denoise import denoising_table, hounsfield_table, untouched_table
from training.evaluation.estimate import cost_table, estimate_table
from training.evaluation.image import HeldBack, read_group
from training.evaluation.level import level_table
from training.evaluation.score import Comparisons
from training.evaluation.table import markdown, plain
from training.metric import gradient_similarity, psnr, ssim

CROSS = np.array([[0, 1, 0], [1, 2, 1], [0, 1, 0]], np.float32) / np.float32(np.sqrt(8))


def picture(rows: int = 48, columns: int = 64) -> Plane:
    grid = np.add.outer(np.arange(rows) / 7.0, np.arange(columns) / 5.0)
    return (0.5 + 0.4 * np.sin(grid)).astype(np.float32)


def held_back(name: str = "a", set: str = "photographs") -> HeldBack:
    return HeldBack(set, name, picture())


class Oracle:
    """Knows the clean image and the level; `blur` is how much it lets through when it is not told the law."""

    def __init__(self, clean: Plane, blind_error: float = 0.0) -> None:
        self.clean, self.blind_error = clean, np.float32(blind_error)

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        return self.clean if law else self.clean + self.blind_error

    def noise_level(self, plane: Plane) -> float:
        return float(np.std(plane - self.clean))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Stands in for the slow comparators and notes what each is asked."""
    asked: list[tuple[str, float]] = []

    def stand_in(name: str) -> denoiser.Comparator:
        def nothing(noisy: Plane, sigma: float, kernel: Kernel | None) -> Plane:
            asked.append((name, sigma))
            return noisy

        return nothing

    for name in denoiser.COMPARATORS:
        monkeypatch.setitem(denoiser.COMPARATORS, name, stand_in(name))
    return asked


def test_psnr_and_ssim_of_known_errors() -> None:
    clean = picture()
    assert psnr(clean + np.float32(0.1), clean) == pytest.approx(20.0, abs=1e-3)
    assert psnr(clean, clean) == float("inf")
    assert ssim(clean, clean) == pytest.approx(1.0)
    assert ssim(degrade(held_back(), white(51)).noisy, clean) < 0.7


def test_gradient_similarity_is_the_published_one() -> None:
    rng = np.random.default_rng(2)
    reference = data.camera()[100:133, 150:192].astype(np.float64)  # 33 rows: the last one is in no block
    image = reference + rng.normal(0, 20, reference.shape)
    kernel = np.array([[1, 0, -1], [1, 0, -1], [1, 0, -1]]) / 3

    def magnitude(values: np.ndarray) -> np.ndarray:
        half = np.array([[values[i : i + 2, j : j + 2].mean() for j in range(0, 42, 2)] for i in range(0, 32, 2)])
        return np.hypot(*(convolve2d(half, k, mode="same") for k in (kernel, kernel.T)))

    first, second = magnitude(image), magnitude(reference)
    similarity = (2 * first * second + 170) / (first**2 + second**2 + 170)
    expected = (similarity.mean(), np.sqrt(((similarity - similarity.mean()) ** 2).mean()))
    assert gradient_similarity(image / 255, reference / 255) == pytest.approx(expected, abs=1e-5)
    assert gradient_similarity(reference / 255, reference / 255) == (1.0, 0.0)
    blurred, sharper = (gradient_similarity(gaussian_filter(reference, s) / 255, reference / 255) for s in (2, 1))
    assert blurred[0] < sharper[0] < 1
    assert blurred[1] > sharper[1] > 0


def test_same_name_and_level_give_the_same_noise() -> None:
    a, b, c = (degrade(held_back(name), white(25)) for name in ("x", "x", "y"))
    assert np.array_equal(a.noisy, b.noisy)
    assert a.key == b.key
    assert not np.array_equal(a.noisy, c.noisy)
    clipped = degrade(held_back("x"), white(25, clipped=True)).noisy * 255
    np.testing.assert_allclose(clipped, np.rint(clipped), atol=1e-4)


@pytest.mark.parametrize(
    "noise", [white(20), poisson_gaussian(20, 0.5), poisson_gaussian(20, 0.9), coloured(20, "cross", CROSS)]
)
def test_every_noise_has_the_level_it_is_named_by(noise: Noise) -> None:
    case = degrade(HeldBack("s", "i", np.full((200, 200), 0.5, np.float32)), noise)
    assert np.std(case.noisy - case.clean) == pytest.approx(20 / 255, rel=0.05)
    assert case.sigma == pytest.approx(20 / 255, rel=1e-6)
    assert noise.level_255 == 20.0


def test_the_colour_is_part_of_a_case(quick: list[tuple[str, float]]) -> None:
    one, other = (degrade(held_back(), noise) for noise in (white(20), coloured(20, "cross", CROSS)))
    assert one.key != other.key
    spectrum = denoiser.power_spectrum((32, 48), 0.1, CROSS)
    assert spectrum.mean() == pytest.approx(0.1**2 * 32 * 48, rel=1e-5)
    assert spectrum[0, 0] / spectrum[16, 24] == pytest.approx(9, rel=1e-5)  # (2 + 4)^2 / (2 - 4)^2


def test_denoise_table_scores_a_perfect_restorer(quick: list[tuple[str, float]], tmp_path: Path) -> None:
    image, cache = held_back(), tmp_path / "cache.json"
    cases = list(degrade_all([image], [white(15), white(50)]))
    rows = denoising_table(cases, {"Oracle": Oracle(image.plane)}, Comparisons(cache))
    assert [row["sigma"] for row in rows] == [15.0, 50.0]
    assert rows[0]["Oracle"] == [float("inf"), pytest.approx(1.0)]
    assert rows[0]["noisy"][0] == pytest.approx(24.6, abs=0.3)
    assert rows[0]["Oracle over BM3D"] == float("inf")
    assert "| photographs | 15 | False | 1 |" in markdown(rows)
    assert len(quick) == 4
    with cache.open("a") as stream:
        stream.write('["BM3D:half a li')  # a process was killed here
    again = denoising_table(cases, {}, Comparisons(cache))
    assert len(quick) == 4  # all of it came from the file
    assert again[1]["BM3D"] == rows[1]["BM3D"]


def test_hounsfield_and_untouched_tables(quick: list[tuple[str, float]]) -> None:
    image = held_back("a", "CT")
    rows = hounsfield_table([image], {"Oracle": Oracle(image.plane)}, Comparisons())
    assert [row["noise_hu"] for row in rows] == [0, 3, 10, 30, 100]
    assert rows[3]["before"] == pytest.approx(30, rel=0.05)
    assert rows[3]["Oracle"] == 0
    (row,) = untouched_table([image], {"Oracle": Oracle(image.plane, blind_error=0.01)})
    assert row["Oracle"] == pytest.approx(40, abs=0.01)


def test_ablation_knows_blind_from_told(quick: list[tuple[str, float]]) -> None:
    image = held_back()
    variants = {"ceiling": Oracle(image.plane, 0.01), "S2": Oracle(image.plane, 0.02)}
    cases = degrade_all([image], noises({"cross": CROSS}, levels=[25.0]))
    rows = {(row["noise"], row["method"]): row for row in ablation_table(cases, variants, Comparisons())}
    assert {noise for noise, _ in rows} == {"white", "Poisson-Gaussian 0.5", "Poisson-Gaussian 0.9", "cross"}
    assert ("cross", "BM3D (spectrum)") in rows
    assert ("white", "BM3D (spectrum)") not in rows
    row = rows["white", "S2"]
    assert row["blind"][0] == pytest.approx(34, abs=0.1)
    assert row["told"][0] == row["blind loss"] == float("inf")
    assert row["behind ceiling"] == pytest.approx(6.02, abs=0.05)
    assert rows["white", "BM3D"]["blind"] is None
    assert row["over BM3D"] == pytest.approx(row["blind"][0] - rows["white", "BM3D"]["told"][0])


def test_coloured_table_has_levels_and_specialists(quick: list[tuple[str, float]]) -> None:
    image = held_back()
    restorers, specialists = {"A": Oracle(image.plane, 0.02)}, {"cross": Oracle(image.plane, 0.01)}
    (row,) = coloured_table([image], {"cross": CROSS}, restorers, specialists, Comparisons(), levels=[15.0])
    assert row["lags"] == [0.5, 0.5, 0.125, 0.125]
    assert row["A level error %"] < 5 < row["wavelet MAD level error %"]
    assert row["A behind"] == pytest.approx(6.02, abs=0.05)
    assert quick[0] == ("BM3D", pytest.approx(15 / 255))


def test_level_table_meets_specialists_at_their_level() -> None:
    image = held_back()
    rows = level_table([image], {"A": Oracle(image.plane, 0.02)}, {25.0: Oracle(image.plane, 0.01)}, levels=[10.0])
    assert [row["sigma"] for row in rows] == [10.0, 25.0]
    assert "specialist" not in rows[0]
    assert rows[1]["A behind"] == pytest.approx(6.02, abs=0.05)


def test_estimate_table_sums_up_over_levels() -> None:
    images = [held_back("a"), held_back("b")]
    truth = Oracle(picture())
    estimators = {"truth": truth.noise_level, "double": lambda plane: 2 * truth.noise_level(plane)}
    rows = estimate_table(degrade_all(images, [white(10), white(50), white(50, clipped=True)]), estimators)
    assert [(row["clipped"], row["sigma"]) for row in rows] == [
        (False, 10),
        (False, 50),
        (False, "all"),
        (True, 50),
        (True, "all"),
    ]
    assert rows[2]["images"] == 4
    assert all(row["truth mean %"] < 5 < 90 < row["double median %"] < 110 for row in rows[:3])


def test_cost_is_measured_in_wavelet_estimates() -> None:
    rows = {row["estimator"]: row for row in cost_table(picture(), {"nothing": lambda plane: 0.0}, repeats=1)}
    assert rows["wavelet MAD"]["times MAD"] == 1
    assert {"nothing", "weak texture"} < rows.keys()


def test_sets_are_read_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(5):
        Image.fromarray(np.full((10, 14), i, np.uint8)).save(tmp_path / "a" / f"{i}.png")
    sets = tmp_path / "sets.toml"
    sets.write_text('[[photographs]]\nname = "A"\nfolder = "a"\n')
    found = list(read_group(tmp_path, sets, "photographs", 3))
    assert [(image.set, image.name, image.plane.shape) for image in found] == [
        ("A", "0.png", (8, 12)),
        ("A", "2.png", (8, 12)),
        ("A", "4.png", (8, 12)),
    ]


def test_tables_become_strict_json_and_markdown() -> None:
    rows = [{"set": "A", "score": [float("inf"), 1.0], "all": {"x": [0.5]}}, {"set": "B", "gain": None, "n": 0.123456}]
    assert json.loads(json.dumps(plain(rows), allow_nan=False))[0]["score"] == [None, 1.0]
    assert markdown(rows).splitlines() == [
        "| set | score | gain | n |",
        "| --- | --- | --- | --- |",
        "| A | inf / 1.000 |  |  |",
        "| B |  |  | 0.1235 |",
    ]


def test_the_command_prints_a_table_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray((255 * picture()).astype(np.uint8)).save(tmp_path / "a" / "0.png")
    sets = tmp_path / "sets.toml"
    sets.write_text('[[photographs]]\nname = "A"\nfolder = "a"\n')
    out = tmp_path / "levels.json"
    words = ["levels", "--data", tmp_path, "--sets", sets, "--levels", "25", "--threads", "1", "--json", out]
    assert main([*map(str, words), "--model", "v2=denoise", "--specialist", "25=denoise"]) == 0
    (row,) = json.loads(out.read_text())["levels"]
    assert row["v2"][0] > row["noisy"][0] + 5
    assert row["v2 behind"] == 0
    assert "| A | 25 | 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["nonsense"])
