"""What the service does not import, seen in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FORBIDDEN = ("training", "torch", "models.networks", "lightning", "onnxruntime", "openvino", "pydicom")


def test_the_service_starts_without_training_and_runtimes() -> None:
    program = "import sys, app.main, app.local; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = found.stdout.split()
    assert "app.main" in loaded
    assert [name for name in loaded if name.startswith(FORBIDDEN)] == []


def test_reading_images_needs_numpy_and_decoders_alone() -> None:
    program = "import sys, models.imaging.codec, models.imaging.tiles, models.bundle; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert [name for name in found.stdout.split() if name.startswith(("torch", "pydantic", "pydicom", "app"))] == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("app", "from training import train"),
        ("app", "def f():\n    import models.networks.unet"),
        ("app", "import torch"),
        ("models/imaging", "import pydicom"),
        ("models/networks", "import app.main"),
        ("training", "from app import main"),
    ],
)
def test_the_linter_refuses_imports_against_the_direction(package: str, line: str) -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "TID251",
        "--stdin-filename",
        f"{package}/new.py",
        "-",
    ]
    found = subprocess.run(command, input=line + "\n", capture_output=True, text=True, cwd=ROOT)
    assert "TID251" in found.stdout, found.stderr


def test_each_package_extends_the_root_rules() -> None:
    for path in ROOT.glob("[amt]*/**/ruff.toml"):
        rules = tomllib.loads(path.read_text())
        assert (path.parent / rules["extend"]).resolve() == ROOT / "pyproject.toml"
