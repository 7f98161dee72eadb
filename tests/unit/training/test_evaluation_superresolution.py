"""Tables of super-resolution: the same draws on every call, and each column says what its name says."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from training.data.noise import Plane
from training.degradation.bicubic import reduce_plane
from training.degradation.generator import DegradationGenerator
from training.degradation.learned import LearnedDegradation, write_learned
from training.evaluation.command import main
from training.evaluation.image import HeldBack
from training.evaluation.reduction import NOISE, degradations, find_learned, reduce_all
from training.evaluation.superresolution import bicubic, superresolution_table
from training.evaluation.table import Row
from training.metric import psnr


def picture(rows: int = 64, columns: int = 80) -> Plane:
    return data.camera()[100 : 100 + rows, 150 : 150 + columns].astype(np.float32) / np.float32(255)


def held_back(name: str = "a", set: str = "photographs") -> HeldBack:
    return HeldBack(set, name, picture())


@pytest.fixture(scope="module")
def learned() -> LearnedDegradation:
    torch.manual_seed(5)
    return LearnedDegradation(DegradationGenerator(2, 8).eval())


def rows_of(kind: str, scale: int, models: dict, learned: LearnedDegradation | None = None) -> dict[str, Row]:
    cases = reduce_all([held_back()], degradations([kind], scale, learned))
    return {row["method"]: row for row in superresolution_table(cases, scale, models)}


@pytest.mark.parametrize("kind", ["bicubic", "known", "pdm"])
def test_a_draw_depends_on_names_alone(kind: str, learned: LearnedDegradation) -> None:
    ways = degradations(["bicubic", "known", "pdm"], 2, learned)
    first, other = reduce_all([held_back("a"), held_back("b")], {kind: ways[kind]})
    (again,) = (case for case in reduce_all([held_back("a", "another set")], ways) if case.degradation == kind)
    assert np.array_equal(first.low, again.low)
    assert np.array_equal(first.low, other.low) == (kind == "bicubic")
    assert np.array_equal(first.again(first.high), first.again(first.high))


def test_what_made_an_image_is_known_but_for_its_noise(learned: LearnedDegradation) -> None:
    ways = degradations(["bicubic", "known", "pdm"], 2, learned)
    plain, known, drawn = reduce_all([held_back()], ways)
    assert np.array_equal(plain.low, reduce_plane(picture(), 2))
    assert np.array_equal(plain.again(plain.high), plain.low)
    noise = known.low - known.again(known.high)
    assert noise.std() == pytest.approx(NOISE, rel=0.05)
    assert abs(noise.mean()) < 3 * NOISE / np.sqrt(noise.size)
    assert known.again(known.high).std() < plain.low.std()  # it is blurred
    assert drawn.low.shape == drawn.again(drawn.high).shape == plain.low.shape
    assert 20 < psnr(drawn.again(drawn.high), drawn.low) < 60  # a new generator's noise is about 5/255


def test_images_are_cut_to_the_unit_range_first() -> None:
    bright = HeldBack("MR", "a", picture() * 2 - np.float32(0.3))
    (case,) = reduce_all([bright], degradations(["bicubic"], 2))
    assert (case.high.min(), case.high.max()) == (0, 1)


def test_degradations_that_cannot_be_had_are_refused(learned: LearnedDegradation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'fog': there are bicubic, known, pdm"):
        degradations(["fog"], 2)
    with pytest.raises(ValueError, match="learned at x2"):
        degradations(["pdm"], 2)
    with pytest.raises(ValueError, match="learned at x4"):
        degradations(["pdm"], 4, learned)
    assert find_learned(None) is None
    with pytest.raises(FileNotFoundError, match="no learned degradation"):
        find_learned(tmp_path)
    write_learned(tmp_path / "degradation", learned)
    for place in (tmp_path, tmp_path / "degradation"):
        found = find_learned(place)
        assert found is not None
        assert found.scale == 2


def test_the_truth_is_as_consistent_as_anything_without_the_noise_can_be() -> None:
    models = {"truth": lambda low: picture()}
    plain, noisy = rows_of("bicubic", 2, models), rows_of("known", 2, models)
    assert plain["truth"]["consistency"] == float("inf")
    assert noisy["truth"]["consistency"] == noisy["bicubic"]["consistency of the truth"]
    assert noisy["truth"]["consistency"] == pytest.approx(-20 * np.log10(NOISE), abs=0.3)
    assert plain["truth"]["PSNR / SSIM"] == [float("inf"), pytest.approx(1.0)]
    assert (plain["truth"]["similarity"], plain["truth"]["GMSD"]) == (1.0, 0.0)


def test_the_interpolations_have_no_gain_and_their_place() -> None:
    for scale in (2, 4):
        rows = rows_of("bicubic", scale, {"same": partial(bicubic, scale)})
        assert list(rows) == ["bicubic", "Lanczos", "same"]
        assert rows["bicubic"]["gain"] is None
        assert rows["same"]["gain"] == rows["same"]["smallest gain"] == 0
        assert 0 < rows["Lanczos"]["gain"] < 1
        assert max(row["worst shift"] for row in rows.values()) < 0.06
        assert all(25 < row["consistency"] < 60 for row in rows.values())


def test_a_shift_is_seen() -> None:
    rows = rows_of("bicubic", 2, {"moved": lambda low: np.roll(bicubic(2, low), 1, axis=1)})
    assert rows["moved"]["worst shift"] == pytest.approx(1.0, abs=0.1)


def test_the_worst_image_decides_the_smallest_gain() -> None:
    answers = iter([picture(), picture() / 2])
    cases = reduce_all([held_back("a"), held_back("b"), held_back("c", "medical")], degradations(["bicubic"], 2))
    table = superresolution_table(cases, 2, {"mixed": lambda low: next(answers, picture())})
    rows = {(row["set"], row["method"]): row for row in table}
    assert rows["photographs", "mixed"]["images"] == 2
    assert rows["photographs", "mixed"]["smallest gain"] < -5
    assert rows["medical", "mixed"]["smallest gain"] == float("inf")


def test_a_model_of_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not for x2"):
        rows_of("bicubic", 2, {"x4": partial(bicubic, 4)})


def test_the_command_has_a_row_for_every_set_degradation_and_method(
    tmp_path: Path, learned: LearnedDegradation
) -> None:
    write_learned(tmp_path / "pdm", learned)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray((255 * picture()).astype(np.uint8)).save(tmp_path / name / "0.png")
    sets = tmp_path / "sets.toml"
    sets.write_text('[[photographs]]\nname = "A"\nfolder = "a"\n[[medical]]\nname = "B"\nfolder = "b"\n')
    words = ["superresolve", "--data", tmp_path, "--sets", sets, "--scale", "2", "--threads", "1", "--images", "1"]
    out = tmp_path / "scores.json"
    assert main([*map(str, words), "--json", str(out), "--pdm", str(tmp_path / "pdm")]) == 0
    tables = json.loads(out.read_text())
    rows, summed = tables["x2"], tables["x2 over all sets"]
    keys = [(row["set"], row["degradation"], row["method"]) for row in rows]
    methods = ("bicubic", "Lanczos", "MedRestore")
    assert keys == [(s, d, m) for s in "AB" for d in ("bicubic", "known", "pdm") for m in methods]
    assert rows[2]["gain"] > 1
    assert [(row["degradation"], row["method"], row["images"]) for row in summed] == [(*k[1:], 2) for k in keys[:9]]
    assert summed[2]["gain"] == pytest.approx((rows[2]["gain"] + rows[11]["gain"]) / 2)
    assert summed[2]["smallest gain"] == min(rows[2]["smallest gain"], rows[11]["smallest gain"])
    assert main([*map(str, words), "--json", str(out), "--degradation", "known"]) == 0
    assert {row["degradation"] for row in json.loads(out.read_text())["x2"]} == {"known"}
