"""The bench of networks: equal budgets, resumable, every denoiser among its entries."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import training.export
from models.networks.blind_spot import BlindSpotNetwork
from models.networks.registry import NETWORKS, build_network
from training.data.source import SourceConfig
from training.evaluation import bench as common
from training.evaluation.bench import Bench, Entry, read_entries
from training.evaluation.bench_denoiser import ENTRIES, DenoiserBench, read_base
from training.evaluation.blind import BlindSpotDenoiser
from training.evaluation.image import HeldBack

SMALL = (
    Entry("unet", "noise-map-unet", {"channels": [4, 4, 4], "blocks": [1, 1, 1, 1, 1]}, batch=2, crop=32),
    Entry("blind", "dbsn-light", {"channels": 8, "modules": 1}, batch=2, crop=32, precision="32-true"),
)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    grid = np.add.outer(np.arange(72) / 7.0, np.arange(80) / 5.0)
    (tmp_path / "images").mkdir()
    Image.fromarray((127 + 100 * np.sin(grid)).astype(np.uint8)).save(tmp_path / "images" / "a.png")
    monkeypatch.setattr(common, "WARM_UP", 1)
    monkeypatch.setattr(common, "TIMED", 1)
    monkeypatch.setattr(common, "REPEATS", 1)
    monkeypatch.setattr(training.export, "SHAPES", ((16, 24),))
    monkeypatch.setattr(training.export, "BATCHES", (1, 2))
    monkeypatch.setattr(Bench, "seconds_per_step", lambda bench, entry: 0.5)
    base = dataclasses.replace(read_base(), sources=(SourceConfig("a", "images"),))
    return DenoiserBench(tmp_path / "out", base, tmp_path, minutes=0.05)


def images() -> list[HeldBack]:
    return [HeldBack("photographs", "a", np.full((32, 40), 0.5, np.float32))]


def test_rows_are_complete_and_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bench.rows(SMALL, images())
    assert [row["network"] for row in rows] == ["unet", "blind"]
    for row in rows:
        assert row["steps"] == 6  # three CPU seconds at half a second each
        assert row["parameters"] > 100
        assert row["onnx parity"] < 1e-4
        assert row["torchscript parity"] < 1e-4
        assert row["seconds per image"] > 0
        assert len(row["white 15"]) == 2

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(common, "fit_network", forbidden)
    assert bench.rows(SMALL, images()) == rows


def test_a_stopped_run_goes_on_with_the_steps_it_had(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = bench.rows(SMALL[:1], images())
    (bench.out / "unet" / common.ROW).unlink()
    monkeypatch.setattr(Bench, "seconds_per_step", lambda bench, entry: 0.1)  # the machine is quieter now
    (again,) = bench.rows(SMALL[:1], images())
    assert again["steps"] == 6
    assert again["white 25"] == row["white 25"]


def test_another_budget_needs_another_folder(bench: Bench) -> None:
    common.keep(bench.out / "unet" / common.PLAN, "another", {"steps": 1})
    with pytest.raises(ValueError, match="use another --out"):
        bench.rows(SMALL[:1], images())


def test_speed_is_cpu_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 0 < bench.seconds_per_step(SMALL[0]) < 60


def test_an_export_that_fails_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.export, "TOLERANCE", -1.0)
    (row,) = bench.rows(SMALL[:1], images())
    assert row["onnx parity"].startswith("failed: restore: onnx differs from eager")
    assert "seconds per image" not in row


def test_every_registered_denoiser_is_an_entry() -> None:
    entries = read_entries(ENTRIES)
    for entry in entries:
        build_network(entry.network, entry.options)
    denoisers = {
        name
        for name, kind in NETWORKS.items()
        if issubclass(kind, BlindSpotNetwork) or "condition" in inspect.signature(kind.forward).parameters
    }
    assert denoisers == {entry.network for entry in entries}
    assert [entry.name for entry in read_entries(ENTRIES, names=["dran"])] == ["dran"]
    with pytest.raises(ValueError, match="no entry 'nothing'"):
        read_entries(ENTRIES, names=["nothing"])


def test_a_blind_spot_denoiser_weighs_its_mean_against_the_pixel() -> None:
    class Half(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.full_like(image, 0.5), torch.full_like(image, 0.01)

    image = torch.full((1, 1, 8, 8), 0.9)
    told = torch.tensor([[0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0]])
    restored, noise = BlindSpotDenoiser(Half())(image, told, torch.ones(1))
    torch.testing.assert_close(restored, torch.full_like(image, 0.7))
    torch.testing.assert_close(noise, torch.full_like(image, 0.1))
    untouched, _ = BlindSpotDenoiser(Half())(image, 0 * told, torch.ones(1))
    torch.testing.assert_close(untouched, image)
