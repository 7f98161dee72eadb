"""Adversarial training of a super-resolver: exact resume of both networks, what the log tells, stability, processes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from skimage.data import camera
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

import training.duel
from models.networks.superresolution import ResidualUpscaler
from training.config import build
from training.loop import Batch
from training.superresolution.adversary import AdversarialConfig, discrimination_loss, fit_adversarial

ROOT = Path(__file__).parents[3]
SMALL = {
    "fit": {"steps": 6, "batch": 2, "warmup": 1, "head_start": 1, "gradients_every": 2},
    "discriminator": {"channels": 4, "blocks": 2},
}
TERMS = {"l1", "ssim", "gradient", "fourier", "adversarial"}


class Crops(Dataset[Batch]):
    """Crops of a photograph and their area means, each a function of its number."""

    def __init__(self) -> None:
        self.plane = torch.from_numpy((camera() / 255).astype(np.float32))[None]

    def __getitem__(self, number: int) -> Batch:
        top, left = np.random.default_rng(number).integers(0, 512 - 32, 2)
        high = self.plane[:, top : top + 32, left : left + 32]
        return {"image": F.avg_pool2d(high, 2), "clean": high}

    def __len__(self) -> int:
        return 10**6


def fit(folder: Path, raw: dict[str, object] = SMALL, devices: int = 1, **changes: object) -> dict[str, Tensor]:
    """Weights of the averaged generator; those of the players and their optimizers are in the checkpoint."""
    config = build(AdversarialConfig, json.loads(json.dumps(raw)), "test")
    fabric = Fabric(accelerator="cpu", devices=devices, precision=config.fit.precision)  # type: ignore[arg-type]
    fabric.launch()
    torch.manual_seed(0)
    network = ResidualUpscaler(2, channels=4, blocks=1)
    planes = [Crops().plane[0, 100:148, 200:264].numpy()]
    options: dict[str, object] = {"checkpoint_every": 2, "validate_every": 3, "workers": 0} | changes
    found = fit_adversarial(network, Crops(), config, planes, 2, folder, "digest", fabric=fabric, **options)  # type: ignore[arg-type]
    assert not found.training
    assert all(weight.dtype == torch.float32 for weight in found.parameters())
    return found.state_dict()


def logged(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with (folder / "log.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["key"] != "seconds":
                found.setdefault(row["key"], []).append(float(row["value"]))
    return found


def tensors(state: object) -> list[Tensor]:
    """Every tensor of a checkpoint, in order."""
    if isinstance(state, Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [found for each in inner for found in tensors(each)]


@pytest.mark.parametrize(("step", "precision"), [(1, "bf16-mixed"), (5, "bf16-mixed"), (3, "32-true")])
def test_interrupted_training_ends_with_the_same_state(
    tmp_path: Path, step: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = SMALL | {"fit": {**SMALL["fit"], "precision": precision}}
    whole = fit(tmp_path / "whole", raw)
    real = training.duel.generator_move

    def stopping(duel, rules, batch, number, measured):  # type: ignore[no-untyped-def]
        if number == step:  # the critic has moved already
            raise KeyboardInterrupt
        return real(duel, rules, batch, number, measured)

    monkeypatch.setattr(training.duel, "generator_move", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", raw)
    monkeypatch.setattr(training.duel, "generator_move", real)
    resumed = fit(tmp_path / "broken", raw)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "broken")]
    ours, theirs = (tensors(state) for state in states)
    assert len(ours) == len(theirs) > 30
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert any("left" in key for key in states[0]["critic"]["network"])  # the power method goes on where it was
    assert logged(tmp_path / "whole") == logged(tmp_path / "broken")


def test_log_tells_terms_gradients_scores_and_accuracy(tmp_path: Path) -> None:
    fit(tmp_path)
    found = logged(tmp_path)
    assert set(found) == {f"{kind}_{name}" for name in TERMS for kind in ("loss", "gradient")} | {
        "critic_loss", "generator_loss", "psnr", "ssim_held_back", "bicubic", "real_accuracy", "fake_accuracy",
    }  # fmt: skip
    assert len(found["psnr"]) == 2
    assert all(0 <= share <= 1 for share in found["real_accuracy"] + found["fake_accuracy"])
    assert all(min(found[f"gradient_{name}"]) > 0 for name in TERMS)


def test_seed_decides_the_discriminator(tmp_path: Path) -> None:
    first, again, other = (fit(tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_discriminator_is_asked_to_be_right_but_not_certain() -> None:
    right, wrong = torch.full((2, 1, 3, 3), 2.0), torch.full((2, 1, 3, 3), -2.0)
    assert discrimination_loss(right, wrong, 0.9) < discrimination_loss(wrong, right, 0.9)
    certain = 20 * right
    assert discrimination_loss(certain, wrong, 0.9) > discrimination_loss(right, wrong, 0.9)
    assert discrimination_loss(certain, wrong, 1.0) < discrimination_loss(right, wrong, 1.0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"ensemble": {"adversarial": 0.0}}, "nothing to train against"),
        ({"real_label": 0.4}, "real_label"),
        ({"pairs": {"side": 3}}, "unknown key 'side'"),
    ],
)
def test_contradictions_are_refused(raw: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(AdversarialConfig, raw, "adversarial")


@pytest.mark.slow
def test_training_is_stable_and_keeps_the_picture(tmp_path: Path) -> None:
    """From an untrained upscaler: content improves under all terms, and neither player silences the other."""
    raw = {
        "fit": {"steps": 400, "batch": 4, "head_start": 50, "learning_rate": 1e-3, "ema": 0.99},
        "discriminator": {"channels": 8, "blocks": 3},
    }
    fit(tmp_path, raw, validate_every=100, checkpoint_every=1000)
    found = logged(tmp_path)
    assert found["psnr"][-1] > found["bicubic"][-1]
    assert all(0.2 < loss < 1.0 for loss in found["critic_loss"])
    assert 0.05 < (found["real_accuracy"][-1] + found["fake_accuracy"][-1]) / 2 < 0.999


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Same samples, same steps: weights and logged numbers agree to rounding."""
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = subprocess.run(
            [sys.executable, __file__, str(out), str(processes)],
            cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append((logged(out), torch.load(out / "checkpoint.pt", weights_only=True)))
    (log_one, one), (log_two, two) = found
    for key in {f"loss_{name}" for name in TERMS} | {"critic_loss", "psnr"}:
        assert log_two[key] == pytest.approx(log_one[key], rel=1e-3), key
    for ours, theirs in zip(tensors(one["average"]), tensors(two["average"]), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":  # one training of two processes, which a test cannot host
    exact = SMALL | {"fit": {**SMALL["fit"], "precision": "32-true"}}
    torch.set_num_threads(1)
    fit(Path(sys.argv[1]), exact, devices=int(sys.argv[2]))
