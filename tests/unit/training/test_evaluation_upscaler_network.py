"""The bench of super-resolvers: one row for each network and kind of degradation, kept from call to call."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import training.export
from models.networks.registry import NETWORKS, build_network
from training.degradation.generator import DegradationGenerator
from training.degradation.learned import LearnedDegradation, write_learned
from training.evaluation import bench
from training.evaluation.bench import Bench, Entry, read_entries
from training.evaluation.bench_upscaler import ENTRIES, UpscalerBench, read_base
from training.evaluation.command import main
from training.evaluation.image import HeldBack
from training.evaluation.reduction import degradations, reduce_all
from training.evaluation.score import score
from training.evaluation.variant import read_variants

SMALL = Entry("small", "residual-upscaler", {"channels": 4, "blocks": 1}, batch=2, crop=32, precision="32-true")
FILE = """
[[entries]]
name = "small"
network = "residual-upscaler"
options = { channels = 4, blocks = 1 }
batch = 2
crop = 32

[[sources]]
name = "a"
folder = "images"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, a file that names them, and measurements that take no time."""
    (tmp_path / "images").mkdir()
    Image.fromarray(data.camera()[100:180, 150:240]).save(tmp_path / "images" / "a.png")
    (tmp_path / "networks.toml").write_text(FILE)
    (tmp_path / "sets.toml").write_text('[[photographs]]\nname = "A"\nfolder = "images"\n')
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench, "SIDE", 32)
    monkeypatch.setattr(training.export, "SHAPES", ((16, 24),))
    monkeypatch.setattr(training.export, "BATCHES", (1, 2))
    monkeypatch.setattr(Bench, "seconds_per_step", lambda bench, entry: 0.5)
    return tmp_path


def bench_of(folder: Path, kind: str, scale: int = 2, learned: LearnedDegradation | None = None) -> UpscalerBench:
    base = read_base(folder / "networks.toml", scale, kind)
    return UpscalerBench(folder / "out", kind, base, folder, 0.05, learned)


def learned(seed: int, scale: int = 2) -> LearnedDegradation:
    torch.manual_seed(seed)
    return LearnedDegradation(DegradationGenerator(scale, 4 * scale).eval())


def images() -> list[HeldBack]:
    return [HeldBack("photographs", "a", data.camera()[100:164, 150:214].astype(np.float32) / np.float32(255))]


@pytest.mark.parametrize("scale", [2, 4])
def test_rows_are_complete_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, scale: int) -> None:
    runs = bench_of(folder, "blind", scale)
    (row,) = runs.rows([SMALL], images())
    assert (row["trained on"], row["network"], row["steps"]) == ("blind", "small", 6)
    assert row["parameters"] == sum(
        p.numel() for p in build_network(SMALL.network, {"scale": scale} | SMALL.options).parameters()
    )
    assert max(row["onnx parity"], row["torchscript parity"]) < 1e-4
    assert row["seconds per image"] > 0
    for kind in ("bicubic", "known"):
        assert len(row[kind]) == 2
        assert row[f"{kind} worst"] == pytest.approx(row[f"{kind} gain"])  # of one image
        assert 10 < row[f"{kind} consistency"] < 80
    assert "pdm" not in row

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(bench, "fit_network", forbidden)
    assert runs.rows([SMALL], images()) == [row]


def test_what_was_trained_can_be_scored_by_set(folder: Path) -> None:
    (row,) = bench_of(folder, "bicubic").rows([SMALL], images())
    (restorer,) = read_variants([str(folder / "out" / "bicubic" / "small")], folder, 1).values()
    (case,) = reduce_all(images(), degradations(["bicubic"], 2))
    assert score(restorer.restore(case.low), case.high) == pytest.approx(row["bicubic"], abs=1e-6)


def test_kinds_of_degradation_teach_different_things_side_by_side(folder: Path) -> None:
    rows = [bench_of(folder, kind, learned=learned(1)).rows([SMALL], images())[0] for kind in ("bicubic", "mix")]
    assert rows[0]["pdm"] != rows[1]["pdm"]
    assert {path.name for path in (folder / "out").iterdir()} == {"bicubic", "mix"}


def test_another_learned_degradation_needs_another_folder(folder: Path) -> None:
    bench_of(folder, "pdm", learned=learned(1)).rows([SMALL], images())
    with pytest.raises(ValueError, match="use another --out"):
        bench_of(folder, "pdm", learned=learned(2)).rows([SMALL], images())
    with pytest.raises(ValueError, match="learn"):
        bench_of(folder, "mix")


def test_every_registered_upscaler_is_an_entry() -> None:
    upscalers = {name for name, kind in NETWORKS.items() if next(iter(inspect.signature(kind).parameters)) == "scale"}
    entries = read_entries(ENTRIES)
    assert upscalers == {entry.network for entry in entries}
    for scale in (2, 4):
        for entry in entries:
            build_network(entry.network, {"scale": scale} | entry.options)
        assert read_base(ENTRIES, scale, "mix").scale == scale


def test_the_command_trains_on_each_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_learned(folder / "run" / "degradation", learned(1))
    out = folder / "table.json"
    words = ["networks", "--task", "superresolve", "--data", folder, "--sets", folder / "sets.toml", "--images", "1"]
    words += ["--entries", folder / "networks.toml", "--minutes", "0.02", "--out", folder / "out", "--json", out]
    assert main([*map(str, words), "--pdm", str(folder / "run")]) == 0
    rows = json.loads(out.read_text())["networks x2"]
    assert [(row["trained on"], row["network"]) for row in rows] == [("bicubic", "small"), ("mix", "small")]
    assert "| bicubic | small | 2 |" in capsys.readouterr().out
