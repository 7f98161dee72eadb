"""The table of every loss term's gradient on a bundle's generator."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from skimage.data import camera

from training.start import SHIPPED
from training.superresolution.gradient import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(2):
        Image.fromarray(camera()[100 + 50 * i :][:45, 200:260]).save(tmp_path / f"{i}.png")
    return tmp_path


def shipped(name: str) -> str:
    """The folder of some version of a shipped bundle."""
    return str(next(path.parent for path in sorted((SHIPPED / name).glob("*/manifest.json"))))


@pytest.mark.parametrize("name", ["superresolve-x2", "superresolve-x4"])
def test_no_term_is_without_gradient(images: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([shipped(name), str(images), "--side", "48"]) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["term", "weight", "value", "gradient"]
    assert [row[0] for row in rows] == ["l1", "ssim", "gradient", "fourier", "adversarial"]
    assert all(float(number) > 0 for row in rows for number in row[1:])


def test_what_cannot_be_measured_is_refused(images: Path) -> None:
    with pytest.raises(ValueError, match="a super-resolver"):
        main([shipped("denoise"), str(images)])
    with pytest.raises(ValueError, match="--side"):
        main([shipped("superresolve-x4"), str(images), "--side", "50"])
    with pytest.raises(FileNotFoundError, match="no image"):
        main([shipped("superresolve-x2"), str(images / "none")])
