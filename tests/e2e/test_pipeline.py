"""From real noisy images to an image that a running service denoised with the model just made."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from models.bundle import find_bundle
from tests.e2e.server import ROOT, Server

pytestmark = [pytest.mark.slow, pytest.mark.shared]
MACHINE = ("--accelerator", "cpu", "--threads", "1")


def medrestore(*words: object) -> str:
    """Runs a command; gives what it said."""
    command = [sys.executable, "-m", "medrestore", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke preset on CT slices at 1 mm, the noisiest clinical ones here."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    noisy, clean = shared / "data/medical/ct/lidc0314_1mm", shared / "data/natural/bsds500"
    medrestore("pipeline", "run", "--noisy", noisy, "--clean", clean, "--out", out, "--preset", "smoke", *MACHINE)
    return out


def test_report_is_written_and_judges_the_run(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    assert {row["check"] for row in report["acceptance"]["rows"]} >= {"BM3D", "blind", "noise-free", "HU bias"}
    assert (run / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")
    found = next(iter(report["sets"].values()))
    assert found["held_back"]
    assert found["level_after"] < found["level_before"]


def test_service_takes_the_model_up_and_denoises_over_http(run: Path, shared: Path, tmp_path: Path) -> None:
    repository = tmp_path / "bundles"
    assert "published denoise@1" in medrestore("publish", run, "--to", repository)
    server = Server(tmp_path, "--repository", str(repository))
    try:
        server.wait_ready()
        body = sorted((shared / "data/medical/ct/lidc0314_1mm").glob("*.png"))[-1].read_bytes()
        request = Request(f"{server.url}/denoise", body, {"Content-Type": "image/png"})
        with urlopen(request, timeout=120) as answer:
            restored = np.array(Image.open(io.BytesIO(answer.read())))
            assert answer.headers["X-Model"].startswith("denoise@1")
    finally:
        server.close()
    noisy = np.array(Image.open(io.BytesIO(body)))
    assert restored.shape == noisy.shape
    assert restored.dtype == noisy.dtype
    assert np.abs(np.diff(restored.astype(float))).mean() < np.abs(np.diff(noisy.astype(float))).mean()
    assert find_bundle(repository, "denoise").manifest.provenance["pipeline"]["preset"] == "smoke"


def test_two_processes_learn_what_one_does(shared: Path, tmp_path: Path) -> None:
    """All stages with one and with two processes: losses agree to 1e-4 in float32."""
    steps = {"mean": 12, "variance": 4, "joint": 4}
    settings = [f"preliminary.{phase}={{steps={n},warmup=2}}" for phase, n in steps.items()]
    settings += ["preliminary.precision=32-true", "preliminary.options={channels=8,modules=1}", "report.levels=[25.0]"]
    settings += [f"profound.{graph}.{key}" for graph in ("restore", "estimate") for key in ("steps=8", "warmup=2")]
    settings += ["profound.restore.precision=32-true", "report.side=64", "report.images=1"]
    words = [word for text in settings for word in ("--set", text)]
    folders = ["--noisy", shared / "data/medical/oct/sdoct_pairs", "--clean", shared / "data/natural/skimage"]
    losses = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        options = [
            "--preset",
            "smoke",
            "--accelerator",
            "cpu",
            "--threads",
            "1",
            "--devices",
            devices,
            "--workers",
            "0",
        ]
        medrestore("pipeline", "run", *folders, "--out", out, *options, *words)
        assert json.loads((out / "profound" / "stage.json").read_text())["processes"] == devices
        losses.append([row for path in sorted(out.rglob("log.csv")) for row in loss_rows(path)])
    assert len(losses[0]) >= 5
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def loss_rows(path: Path) -> list[float]:
    """The losses of a training log, in order."""
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return [float(value) for _, key, value in rows if key.endswith("loss")]
