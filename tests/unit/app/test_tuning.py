"""Autotune: what it measures, what it chooses from figures, and what it writes."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import medrestore
from app.backends.base import load
from app.main import engine_config
from app.settings import Settings
from app.tuning import fidelity
from app.tuning.choice import choose
from app.tuning.command import BEGIN, END, merged
from app.tuning.fidelity import Loss, packaged
from app.tuning.sweep import Load, Sweep, Timing, Way, sweep
from models.bundle import Bundle, find_bundle
from models.errors import BundleNotFound

SMALL, LARGE = Load((16, 16), 1), Load((64, 64), 1)
PAIR = Load((16, 16), 2)
GOOD, BAD = Loss(0.002, 0.01, 300, 20.0, 9), Loss(0.02, 0.03, 900, 60.0, 9)


def timing(backend: str, precision: str, work: Load, ms: float, threads: int = 1, equal: bool = True) -> Timing:
    return Timing(Way(backend, precision, threads), work, ms / 1000, ms / 1000, ms / 1000, equal)


def table(bundle: Bundle, **ms: tuple[float, float]) -> Sweep:
    """A sweep of single items: `backend_precision=(ms of the small tile, ms of the large one)`."""
    found = Sweep(bundle)
    for name, pair in ms.items():
        backend, precision = name.split("_")
        found.timings += [timing(backend, precision, work, t) for work, t in zip((SMALL, LARGE), pair, strict=True)]
    return found


@pytest.fixture
def tiny(built_repository: Path) -> Bundle:
    return find_bundle(built_repository, "tiny")


def test_the_sweep_times_every_way_and_stops_with_the_time(tiny: Bundle) -> None:
    result, ways = sweep(tiny, (1,), 0.0)
    assert {(way.backend, way.precision) for way in ways} >= {("onnx", "fp32"), ("openvino", "fp32")}
    assert {t.load for t in result.timings} == {SMALL}
    assert all(0 < t.fastest <= t.seconds <= t.slowest for t in result.timings)
    assert all(t.equal for t in result.timings if t.way.precision == "fp32")
    assert "onnx bf16" in result.left_out
    assert result.left_out["64 x 64, batch 1"] == "the time was spent"


def test_the_default_runtime_stays_unless_another_is_clearly_faster(tiny: Bundle) -> None:
    close = choose([table(tiny, onnx_fp32=(1.0, 10.0), openvino_fp32=(0.98, 9.8))], {})
    assert close.settings["backend"] == "onnx"
    clear = choose([table(tiny, onnx_fp32=(1.0, 10.0), openvino_fp32=(0.5, 9.0))], {})
    assert clear.settings["backend"] == "openvino"


def test_a_way_whose_answers_vary_is_never_exact(tiny: Bundle) -> None:
    found = table(tiny, onnx_fp32=(1.0, 10.0), openvino_fp32=(0.1, 1.0))
    found.timings[-1] = replace(found.timings[-1], equal=False)
    assert choose([found], {}).settings["backend"] == "onnx"


@pytest.mark.parametrize(
    ("speed", "loss", "wanted"), [(0.5, GOOD, "openvino"), (0.5, BAD, "onnx"), (1.5, GOOD, "onnx")]
)
def test_fast_mode_is_faster_and_good_or_it_is_exact_mode(tiny: Bundle, speed: float, loss: Loss, wanted: str) -> None:
    found = table(tiny, onnx_fp32=(1.0, 10.0), openvino_bf16=(speed, 10 * speed))
    choice = choose([found], {("openvino", tiny.reference): loss})
    assert choice.settings["fast_backend"] == wanted
    assert any("PSNR" in reason or "loses" in reason for reason in choice.reasons)


def test_batches_must_pay_and_change_no_bit(tiny: Bundle) -> None:
    for ms, equal, wanted in ((1.2, True, 2), (1.2, False, 1), (2.1, True, 1)):
        found = table(tiny, onnx_fp32=(1.0, 10.0))
        found.timings.append(timing("onnx", "fp32", PAIR, ms, equal=equal))
        assert choose([found], {}).settings["batch_items_exact"] == wanted


def test_the_fastest_number_of_threads_is_taken(tiny: Bundle) -> None:
    found = table(tiny, onnx_fp32=(1.0, 10.0))
    found.timings += [timing("onnx", "fp32", SMALL, 0.6, threads=2), timing("onnx", "fp32", LARGE, 5.0, threads=2)]
    assert choose([found], {}).settings["threads"] == 2


@pytest.mark.parametrize("name", ["tiny", "tiny-x2"])
def test_a_mode_loses_nothing_against_itself(built_repository: Path, name: str) -> None:
    bundle = find_bundle(built_repository, name)
    backend = load("onnx", bundle, "cpu", "fp32")
    planes = [plane[:40, :48] for plane in packaged()]
    found = fidelity.loss(bundle, backend, backend, planes)
    assert (found.mean_db, found.worst_db, found.largest, found.typical) == (0.0, 0.0, 0, 0.0)
    assert found.images == len(planes) * (len(fidelity.SIGMAS) if name == "tiny" else 1)


def test_packaged_images_leave_room_for_noise() -> None:
    planes = packaged()
    assert len(planes) == 3
    for plane in planes:
        assert np.isclose(plane.min(), 0.1)
        assert np.isclose(plane.max(), 0.9)


def test_settings_are_merged_into_a_file_again_and_again() -> None:
    once = merged("# mine\nport = 8001\nthreads = 3\n", {"threads": 2, "backend": "onnx"}, "a table")
    assert tomllib.loads(once) == {"port": 8001, "threads": 2, "backend": "onnx"}
    assert "# mine" in once
    twice = merged(once, {"threads": 1, "backend": "openvino"}, "another table")
    assert tomllib.loads(twice) == {"port": 8001, "threads": 1, "backend": "openvino"}
    assert twice.count(BEGIN) == twice.count(END) == 1
    assert "# a table" not in twice


def test_the_command_writes_settings_that_the_service_reads(
    built_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.tuning.command.packaged", lambda: [plane[:32, :32] for plane in packaged()])
    config = tmp_path / "medrestore.toml"
    words = ["autotune", "--repository", str(built_repository), "--config", str(config), "--seconds", "0"]
    assert medrestore.main(words) == 0
    out, err = capsys.readouterr()
    assert "| tiny@1 |" in out
    assert "| tiny-x2@1 |" in out
    assert str(config) in err
    monkeypatch.setenv("MEDRESTORE_CONFIG", str(config))
    settings = Settings()
    assert settings.threads is not None
    assert engine_config(settings).batch_items == {
        "fp32": settings.batch_items_exact,
        "bf16": settings.batch_items_fast,
    }


def test_an_unknown_model_changes_no_file(built_repository: Path, tmp_path: Path) -> None:
    config = tmp_path / "medrestore.toml"
    config.write_text("port = 8001\n")
    words = ["--debug", "autotune", "--repository", str(built_repository), "--config", str(config), "--model", "none"]
    with pytest.raises(BundleNotFound):
        medrestore.main(words)
    assert config.read_text() == "port = 8001\n"
