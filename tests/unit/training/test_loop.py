"""The training loop: exact resume, exact numbering, schedule, and a network that really learns."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import Fit
from training.export import export
from training.loop import Numbered, learning_rate
from training.start import trained_on
from training.train import main

ROOT = Path(__file__).parents[3]
CONFIG = """
name = "denoise"
task = "denoise"
summary = "test"
seed = 5
tiles = [64]
checkpoint_every = 2
validate_every = 1000

[restore]
network = "noise-map-unet"
options = { channels = [8, 8, 16], blocks = [1, 1, 1, 1, 1] }
steps = 6
batch = 2
warmup = 1
pairs = { crop = 32 }

[estimate]
network = "noise-level"
options = { channels = 8, depth = 2 }
steps = 4
batch = 2
warmup = 1
pairs = { crop = 32 }

[[sources]]
name = "made"
folder = "images"
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of two smooth pictures."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    grid = np.add.outer(np.arange(70), np.arange(90))
    for i in range(2):
        plane = (127 + 100 * np.sin(grid / (9.0 + 5 * i))).astype(np.uint8)
        Image.fromarray(plane).save(folder / f"{i}.png")
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def run(root: Path, out: str, *more: str) -> dict[str, torch.Tensor]:
    options = ["--config", str(root / "config.toml"), "--data", str(root / "data"), "--out", str(root / out)]
    assert main(["denoise", *options, "--workers", "0", "--accelerator", "cpu", *more]) == 0
    weights: dict[str, torch.Tensor] = torch.load(root / out / "restore" / "weights.pt", weights_only=True)
    return weights


class StopError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("step", [1, 3, 5])
def test_interrupted_run_ends_with_the_same_weights(data: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.loop

    whole = run(data, "whole")
    real = training.loop.train_step

    def stopping(state, objective, batch):  # type: ignore[no-untyped-def]
        if state.fit.steps == 6 and state.step == step:
            raise StopError
        return real(state, objective, batch)

    monkeypatch.setattr(training.loop, "train_step", stopping)
    with pytest.raises(StopError):
        run(data, "broken")
    monkeypatch.setattr(training.loop, "train_step", real)
    resumed = run(data, "broken")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_another_seed_gives_other_weights(data: Path) -> None:
    first, second = run(data, "first"), run(data, "second", "--set", "seed=6")
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_checkpoint_of_another_configuration_is_refused(data: Path) -> None:
    run(data, "out")
    with pytest.raises(ValueError, match="another configuration"):
        run(data, "out", "--set", "restore.learning_rate=1e-4")


def test_training_goes_on_from_a_bundle(data: Path) -> None:
    first = run(data, "first")
    bundle = export(data / "first", data / "bundles", "1", {})
    still = ("restore.learning_rate=0.0", "restore.final_learning_rate=0.0", f"start={bundle}")
    later = run(data, "later", *(word for text in still for word in ("--set", text)))
    assert all(torch.equal(first[key], later[key]) for key in first)
    record = json.loads((data / "later" / "run.json").read_text())
    assert trained_on(record["start"]) == trained_on(record["data"]) != set()
    assert not any(image["file"] in json.dumps(record["start"]) for image in record["data"])


def test_processes_share_the_samples_between_them() -> None:
    fit = Fit(network="", steps=5, batch=4)
    whole = list(Numbered(fit, 2, 0, 1))
    shares = [list(Numbered(fit, 2, rank, 2)) for rank in range(2)]
    assert whole == list(range(8, 20))
    assert sorted(shares[0] + shares[1]) == whole
    per_step = [sorted(shares[0][i : i + 2] + shares[1][i : i + 2]) for i in range(0, 6, 2)]
    assert per_step == [whole[i : i + 4] for i in range(0, 12, 4)]


def test_learning_rate_rises_then_falls() -> None:
    fit = Fit(network="", steps=100, warmup=10, learning_rate=1.0, final_learning_rate=0.01)
    rates = [learning_rate(fit, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.02


def test_a_held_run_can_be_prolonged() -> None:
    short = Fit(network="", steps=60, warmup=10, hold=30, learning_rate=1.0)
    longer = dataclasses.replace(short, steps=200, hold=150)
    assert [learning_rate(longer, step) for step in range(40)] == [learning_rate(short, step) for step in range(40)]
    assert learning_rate(short, 39) == 1.0
    assert learning_rate(short, 59) < 0.01
    assert learning_rate(longer, 199) < 0.01
    with pytest.raises(ValueError, match="hold"):
        Fit(network="", hold=-1)


@pytest.mark.slow
def test_training_learns_to_denoise(data: Path) -> None:
    """Two hundred steps on two pictures must already beat the noisy image by 3 dB."""
    run(data, "out", "--set", "restore.steps=200", "--set", "restore.batch=4", "--set", "validate_every=200",
        "--set", "restore.learning_rate=1e-2",
        "--set", 'validation=[{name="made", folder="images"}]')  # fmt: skip
    rows = (data / "out" / "restore" / "log.csv").read_text().splitlines()
    scores = {line.split(",")[1]: float(line.split(",")[2]) for line in rows[1:]}
    assert scores["psnr_25"] > 20.17 + 3  # the noisy image has 20 log10(255 / 25) dB


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data: Path) -> None:
    """Same samples, same steps: weights and logged losses agree to rounding."""
    found = []
    for processes in ("1", "2"):
        out = data / processes
        command = [sys.executable, "-m", "medrestore", "train", "denoise", "--config", str(data / "config.toml")]
        command += ["--data", str(data / "data"), "--out", str(out), "--devices", processes, "--accelerator", "cpu"]
        command += ["--workers", "0", "--threads", "1", "--set", "restore.precision=32-true"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        loss = [line for line in (out / "restore" / "log.csv").read_text().splitlines() if ",loss," in line]
        weights = torch.load(out / "restore" / "weights.pt", weights_only=True)
        found.append((float(loss[-1].split(",")[2]), weights))
    (loss_one, one), (loss_two, two) = found
    assert loss_two == pytest.approx(loss_one, rel=1e-4)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-5)
