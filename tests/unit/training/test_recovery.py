"""`medrestore evaluate degradation`: what it writes and says; its figures are measured by hand, not here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as images

from training.data.noise import correlations
from training.degradation.learned import read_learned
from training.degradation.recovery import KNOWN, known_sets
from training.evaluation.command import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four photographs where the command looks for them."""
    folder = tmp_path / "data" / "natural" / "bsds500"
    folder.mkdir(parents=True)
    for number, photograph in enumerate((images.camera(), images.brick(), images.moon(), images.grass())):
        Image.fromarray(photograph[:256, :256]).save(folder / f"{number}.jpg", quality=95)
    return tmp_path / "data"


def test_table_has_what_was_learned_beside_what_is_true(data: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out", tmp_path / "table.json"
    arguments = ["degradation", "--data", str(data), "--out", str(out), "--photographs", "2", "--steps", "6"]
    assert main([*arguments, "--json", str(table)]) == 0
    (row,) = json.loads(table.read_text())["degradation"]
    assert (row["case"], row["seed"]) == ("x2", 0)
    learned = read_learned(out / "x2-0" / "learned")
    assert row["moment_ratio"] == pytest.approx(learned.facts["moment"] / 1.44, rel=1e-3)
    assert row["noise_ratio"] == pytest.approx(learned.facts["noise"] * 51, rel=1e-3)
    assert row["shift"] < 0.1
    assert (out / "x2-0" / "draws.svg").read_text().startswith("<svg")
    assert (out / "x2-0" / "draws.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_case_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--cases x3: there are x2"):
        main(["degradation", "--data", str(data), "--out", str(tmp_path), "--cases", "x3"])


def test_sets_are_of_different_photographs(data: Path) -> None:
    sets = known_sets(data, KNOWN["x2"], 2, seed=0)
    assert (len(sets.high), len(sets.low)) == (2, 2)
    assert [plane.shape for plane in (*sets.high, *sets.low)] == [(256, 256)] * 2 + [(128, 128)] * 2
    for low in sets.low:
        likeness = [np.corrcoef(high[::2, ::2].ravel(), low.ravel())[0, 1] for high in sets.high]
        assert max(likeness) < 0.8


def test_coloured_case_is_as_documented() -> None:
    np.testing.assert_allclose(correlations(KNOWN["x2-coloured"].colour)[:2], [0.34, 0.6], atol=0.02)
