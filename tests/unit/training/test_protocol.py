"""The field's protocol: what is read, what is compared, and that nothing of the border counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import correlate
from skimage import data

from training.data.noise import Plane
from training.evaluation.command import main
from training.evaluation.imresize import imresize, imresize_8bit
from training.evaluation.protocol import benchmark_images, enlarge_luma, luma, read_colour, shaved_score, y_shave_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(data.astronaut()[:131, 150:291]).save(tmp_path / "a1.png")
    Image.fromarray(data.camera()[100:196, 150:250]).save(tmp_path / "a2.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def truth_of(path: Path, scale: int) -> Plane:
    return (luma(read_colour(path, scale)) / 255).astype(np.float32)


def test_luma_is_that_of_rgb2ycbcr() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(colours)[0], [16, 235, 81.481, 144.553, 40.966], atol=1e-9)


def test_images_are_found_by_name_and_cut_to_the_scale(folder: Path) -> None:
    assert [path.name for path in benchmark_images(folder)] == ["a1.png", "a2.bmp"]
    assert [path.name for path in benchmark_images(folder, "*2*")] == ["a2.bmp"]
    assert [path.name for path in benchmark_images(folder, "*", "x* a2*")] == ["a1.png"]
    with pytest.raises(FileNotFoundError, match="no PNG, JPEG or BMP file matches 'b"):
        benchmark_images(folder, "b*")
    high = read_colour(folder / "a1.png", 4)
    assert high.shape == (128, 140, 3)
    np.testing.assert_array_equal(high, data.astronaut()[:128, 150:290])
    gray = read_colour(folder / "a2.bmp", 2)
    np.testing.assert_array_equal(gray, np.repeat(data.camera()[100:196, 150:250, None], 3, axis=2))


def test_what_the_protocol_cannot_score_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((64, 14), np.uint8)).save(tmp_path / "narrow.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"deep\.png: mode I;16"):
        read_colour(tmp_path / "deep.png", 2)
    with pytest.raises(ValueError, match=r"narrow\.png: 64 x 14 pixels are too few"):
        read_colour(tmp_path / "narrow.png", 2)
    with pytest.raises(ValueError, match=r"broken\.png: not a readable image"):
        read_colour(tmp_path / "broken.png", 2)


def test_only_what_is_not_shaved_counts() -> None:
    truth = luma(data.astronaut()[:64, 150:230])
    answer = truth.copy()
    answer[:4], answer[-4:], answer[:, :4], answer[:, -4:] = 0, 0, 0, 0
    assert shaved_score(answer, truth, 4) == [float("inf"), pytest.approx(1.0)]
    assert shaved_score(answer, truth, 2)[0] < 30
    psnr, _ = shaved_score(truth + 1, truth, 4)
    assert psnr == pytest.approx(20 * np.log10(255), abs=1e-9)


def test_ssim_is_the_published_one() -> None:
    truth = luma(data.astronaut()[:64, 150:230])
    answer = luma(imresize_8bit(imresize_8bit(data.astronaut()[:64, 150:230], 0.5), 2))
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def local(image: np.ndarray) -> np.ndarray:
        return correlate(image, window)[5:-5, 5:-5]

    x, y = answer[2:-2, 2:-2], truth[2:-2, 2:-2]
    mean_x, mean_y = local(x), local(y)
    var_x, var_y, both = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert shaved_score(answer, truth, 2)[1] == pytest.approx(index.mean(), abs=1e-9)


def test_a_perfect_answer_is_off_by_its_rounding_alone(folder: Path) -> None:
    path = folder / "a1.png"
    row, mean = y_shave_table([path], 2, {"perfect": lambda low: truth_of(path, 2)})
    assert row["perfect"][0] == pytest.approx(10 * np.log10(255**2 * 12), abs=0.2)  # variance of rounding: 1/12
    assert row["perfect"][1] > 0.999
    assert row["perfect gain"] == pytest.approx(row["perfect"][0] - row["bicubic"][0])
    assert mean == row | {"image": "mean of 1"}


@pytest.mark.parametrize("scale", [2, 4])
def test_bicubic_on_the_luma_scores_as_bicubic_on_the_colours(folder: Path, scale: int) -> None:
    def bicubic(low: Plane) -> Plane:
        return imresize(low, scale).astype(np.float32)

    rows = y_shave_table(benchmark_images(folder), scale, {"luma": bicubic})
    assert [row["image"] for row in rows] == ["a1.png", "a2.bmp", "mean of 2"]
    for row in rows:
        assert abs(row["luma gain"]) < 0.05
        assert 20 < row["bicubic"][0] < 40
    assert rows[2]["bicubic"][0] == pytest.approx((rows[0]["bicubic"][0] + rows[1]["bicubic"][0]) / 2)


def test_a_model_of_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not for x4"):
        enlarge_luma(data.astronaut()[:16, :16], lambda low: np.repeat(np.repeat(low, 2, 0), 2, 1), 4)


@pytest.mark.parametrize(("scale", "gain"), [(2, 1.0), (4, 0.3)])
def test_the_command_scores_the_shipped_bundle(folder: Path, tmp_path: Path, scale: int, gain: float) -> None:
    out = tmp_path / "scores.json"
    words = ["superresolve", "--set", folder, "--protocol", "y-shave", "--scale", scale, "--threads", "1"]
    assert main([*map(str, words), "--include", "a1*", "--json", str(out)]) == 0
    row, mean = json.loads(out.read_text())[f"x{scale} y-shave"]
    assert (row["image"], mean["image"]) == ("a1.png", "mean of 1")
    assert row["MedRestore gain"] > gain


def test_the_command_wants_one_kind_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either --set DIR"):
        main(["superresolve", "--scale", "2"])
    with pytest.raises(ValueError, match="either --set DIR"):
        main(["superresolve", "--set", str(tmp_path), "--data", str(tmp_path)])
