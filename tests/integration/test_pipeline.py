"""The whole pipeline on tiny images: killed at a random moment of every stage, resumed, and fed with what is no input.

Runs are forked from this process: a child starts at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.pipeline.audit
import training.pipeline.command
import training.pipeline.preliminary
import training.pipeline.profound
import training.pipeline.synthesis
import training.report.build  # noqa: F401 - imported once, before the forks
from tests.child import MACHINE, Child
from tests.noisy_folder import noisy_pixels, save, write_folders
from training.pipeline.record import PIPELINE, read_audit, read_json
from training.pipeline.stage import STAGES

QUICK = (
    "preliminary.options={channels=16,modules=1}",
    "preliminary.precision=32-true",
    "preliminary.mean={steps=6,warmup=2}",
    "preliminary.variance={steps=4,warmup=2}",
    "preliminary.joint={steps=4,warmup=2}",
    "preliminary.batch=2",
    "preliminary.checkpoint_every=2",
    "profound.restore.options={channels=[8,8,16],blocks=[1,1,1,1,1]}",
    "profound.restore.steps=6",
    "profound.restore.batch=2",
    "profound.estimate.options={channels=8,depth=2}",
    "profound.estimate.steps=6",
    "profound.estimate.batch=2",
    "profound.checkpoint_every=2",
    "report.levels=[25.0]",
    "report.side=64",
    "report.images=1",
    "report.draws=1",
)
SETTINGS = [word for text in QUICK for word in ("--set", text)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_folders(tmp_path_factory.mktemp("images"))


def start(out: Path, noisy: Path, clean: Path, *words: object) -> Child:
    out.parent.mkdir(parents=True, exist_ok=True)
    command = ["pipeline", "run", "--noisy", noisy, "--clean", clean, "--out", out, "--preset", "smoke"]
    return Child(out.parent / "log.txt", *command, *SETTINGS, *MACHINE, *words)


@pytest.fixture(scope="module")
def unbroken(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    child = start(out, *folders)
    assert child.wait() == 0, child.text
    return out


def weights(out: Path) -> dict[str, Any]:
    """Everything that training left, by file and name."""
    files = ["preliminary/weights.pt", "profound/estimate/weights.pt", "profound/restore/weights.pt"]
    return {
        f"{file}:{name}": tensor for file in files for name, tensor in torch.load(out / file, weights_only=True).items()
    }


def test_run_leaves_every_artefact_with_its_origin(unbroken: Path) -> None:
    record = read_json(unbroken / PIPELINE)
    assert record["preset"] == "smoke"
    assert record["commit"]
    assert record["config"]["profound"]["restore"]["steps"] == 6
    for stage in STAGES:
        mark = read_json(unbroken / stage / "stage.json")
        assert {"commit", "versions", "seconds", "digest", "fingerprint"} <= set(mark)
        assert mark["fingerprint"]["inputs"]
    assert (unbroken / "report" / "report.html").stat().st_size > 10_000
    audit = read_audit(unbroken)
    assert {image.split for image in audit.images} == {"train", "test"}
    groups = {split: {image.group for image in audit.noisy(split)} for split in ("train", "test")}
    assert not groups["train"] & groups["test"]


def test_killed_in_every_stage_and_resumed_it_ends_with_the_same_weights(
    unbroken: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out, rng = tmp_path / "run", random.Random(5)
    for stage in STAGES:
        child = start(out, *folders)
        child.wait_for((out / stage / "started.json").exists)
        time.sleep(rng.uniform(0, 0.8) * read_json(unbroken / stage / "stage.json")["seconds"])
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() in (-signal.SIGKILL, 0)
    resumed = Child(tmp_path / "log.txt", "pipeline", "run", "--out", out, *MACHINE)
    assert resumed.wait() == 0, resumed.text
    expected, found = weights(unbroken), weights(out)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    for file in ("audit/audit.json", "preliminary/table.json", "synthesis/population.json"):
        assert (out / file).read_bytes() == (unbroken / file).read_bytes(), file
    reports = [json.loads((run / "report" / "report.json").read_text()) for run in (unbroken, out)]
    for row in (row for report in reports for row in report["acceptance"]["scores"]):
        row.pop("BM3D", None)  # whose last digits differ from run to run
    assert reports[0]["acceptance"] == reports[1]["acceptance"]
    assert reports[0]["sets"] == reports[1]["sets"]


def test_second_call_does_nothing(unbroken: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.parent != unbroken}
    child = Child(tmp_path / "log.txt", "pipeline", "run", "--out", unbroken, *MACHINE)
    assert child.wait() == 0
    assert child.text.count("done before") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.parent != unbroken} == before


def test_another_configuration_or_folder_is_refused(unbroken: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    child = start(unbroken, *folders, "--set", "profound.restore.steps=8")
    assert child.wait() == 1
    assert "stage profound was made from something else (restore.steps: 8, not 6)" in child.text
    noisy, _ = write_folders(tmp_path, noisy=4)
    child = start(unbroken, noisy, folders[1])
    assert child.wait() == 1
    assert "noisy has changed" in child.text


def test_status_says_what_is_done(unbroken: Path, tmp_path: Path) -> None:
    child = Child(tmp_path / "log.txt", "pipeline", "status", unbroken)
    assert child.wait() == 0
    assert child.text.count(" done in ") == len(STAGES)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_is_one_line_that_says_how_to_go_on(
    folders: tuple[Path, Path], tmp_path: Path, number: int, status: int
) -> None:
    out = tmp_path / "run"
    child = start(out, *folders, "--set", "preliminary.mean={steps=100000,warmup=2}")
    child.wait_for((out / "preliminary" / "mean" / "checkpoint.pt").exists)
    os.kill(child.pid, number)
    assert child.wait() == status
    assert f"medrestore: interrupted; to go on: medrestore pipeline run --out {out}" in child.text
    assert "Traceback" not in child.text
    told = Child(tmp_path / "status.txt", "pipeline", "status", out)
    assert told.wait() == 1
    assert "begun; mean: step" in told.text or "begun" in told.text


def refused(tmp_path: Path, noisy: Path, clean: Path, message: str) -> None:
    """The run ends with one line that says so."""
    child = start(tmp_path / "out" / "run", noisy, clean)
    assert child.wait() == 1, child.text
    last = child.text.splitlines()[-1]
    assert last.startswith("medrestore: ")
    assert message in last, last
    assert "Traceback" not in child.text


def test_empty_folder_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", folders[1], "the folder holds no file")
    refused(tmp_path, tmp_path / "nowhere", folders[1], "is no folder")
    refused(tmp_path, folders[0], tmp_path / "empty", "empty")
    refused(tmp_path, tmp_path, folders[1], "the run would read what it writes")


def test_constant_images_alone_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "noisy" / f"{number}.png", np.full((80, 80), 1000 + number, np.uint16))
    refused(tmp_path, tmp_path / "noisy", folders[1], "constant")


def audited(tmp_path: Path, noisy: Path, clean: Path) -> Any:
    """The audit of a folder that can be used."""
    child = start(tmp_path / "out" / "run", noisy, clean, "--stage", "audit")
    assert child.wait() == 0, child.text
    return read_audit(tmp_path / "out" / "run")


def test_one_corrupt_file_among_many_is_left_out_and_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    noisy, _ = write_folders(tmp_path)
    whole = (noisy / "ct" / "p0x0.png").read_bytes()
    (noisy / "ct" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (noisy / "ct" / "notes.txt").write_text("no image")
    save(noisy / "ct" / "flat.png", np.full((80, 80), 7, np.uint8))
    audit = audited(tmp_path, noisy, folders[1])
    assert len(audit.images) == 8
    assert {refusal.source for refusal in audit.refused} >= {"ct/cut.png", "ct/notes.txt", "ct/flat.png"}


def test_mixed_sizes_and_colour_are_taken(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number, (rows, columns) in enumerate([(80, 80), (96, 70), (120, 200), (77, 91)]):
        save(tmp_path / "noisy" / "grey" / f"{number}x.png", noisy_pixels(number, rows, columns))
    for number in range(4):
        grey = (noisy_pixels(number + 9) >> 8).astype(np.uint8)
        save(tmp_path / "noisy" / "colour" / f"{number}x.png", np.stack([grey, grey // 2, 255 - grey], axis=2))
    audit = audited(tmp_path, tmp_path / "noisy", folders[1])
    assert {(image.rows, image.columns) for image in audit.images} >= {(80, 80), (96, 70), (120, 200), (77, 91)}
    assert sum(image.set.startswith("colour") for image in audit.images) == 4
    assert any("colo" in warning for record in audit.sets.values() for warning in record.warnings)


def test_three_images_are_enough_for_every_stage(folders: tuple[Path, Path], tmp_path: Path) -> None:
    noisy, _ = write_folders(tmp_path, noisy=3)
    child = start(tmp_path / "out" / "run", noisy, folders[1])
    assert child.wait() == 0, child.text
    assert len(read_audit(tmp_path / "out" / "run").images) == 3


def test_two_runs_in_one_folder_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = start(out, *folders, "--set", "preliminary.mean={steps=100000,warmup=2}")
    first.wait_for((out / "preliminary" / "started.json").exists)
    second = Child(tmp_path / "second.txt", "pipeline", "run", "--out", out, *MACHINE)
    assert second.wait() == 1
    assert "in use by another run" in second.text
    os.kill(first.pid, signal.SIGKILL)
    first.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "profound.restore.step=5"], "unknown key 'step'"),
        (["--set", "profound.restore.steps"], "write KEY=VALUE"),
        (["--preset", "tiny"], "neither a file nor one of smoke, cpu, gpu"),
        (["--devices", "0"], "--devices must be at least 1"),
        (["--stage", "profound"], "stage audit is not done yet"),
        (["--from", "denoise@99"], "no model 'denoise@99'"),
        (["--set", "profound.restore.options={width=3}"], "network noise-map-unet: options {'width': 3}"),
        (
            ["--set", "preliminary.network=cnn-est", "--set", "preliminary.options={}"],
            "cnn-est is no blind-spot network",
        ),
    ],
)
def test_wrong_settings_are_one_line(folders, tmp_path: Path, words: list[str], message: str) -> None:
    child = start(tmp_path / "run", *folders, *words)
    assert child.wait() == 1
    assert message in child.text
    assert len(child.text.splitlines()) == 1, child.text
