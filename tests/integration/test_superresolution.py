"""A super-resolver's whole run on tiny images: killed in every stage, resumed, published, fed with what is no input."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.export
import training.publish
import training.superresolution.audit
import training.superresolution.command
import training.superresolution.edition
import training.superresolution.report
import training.superresolution.restoration
import training.superresolution.variant  # noqa: F401 - imported once, before the forks
from models.bundle import find_bundle
from tests.child import MACHINE, Child
from tests.noisy_folder import save
from tests.picture_folder import pieces, write_pictures
from training.pipeline.record import PIPELINE, read_json
from training.pipeline.stage import DONE
from training.report.page import read_report
from training.superresolution.command import RUNNERS
from training.superresolution.record import read_pictures

QUICK = (
    "degradation.learned.fit={steps=4,batch=2,warmup=1,hold=0}",
    "degradation.learned.checkpoint_every=2",
    "restore.fit.options={channels=8,blocks=1}",
    "restore.fit.steps=6",
    "restore.fit.batch=2",
    "restore.checkpoint_every=2",
    "restore.tiles=[64]",
    "adversarial.fit={steps=4,batch=2,head_start=1,warmup=1,gradients_every=2}",
    "adversarial.discriminator={channels=4,blocks=3}",
    "adversarial.checkpoint_every=2",
    "report.images=1",
    "report.side=64",
    "report.panel_side=64",
)
SETTINGS = [word for text in QUICK for word in ("--set", text)]
COMMAND = ["train", "superresolve"]
STAGES = tuple(RUNNERS)
WEIGHTS = ("degradation/degradation.pt", "restore/restore/weights.pt", "adversarial/restore/weights.pt")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pictures(tmp_path_factory.mktemp("MUELLER_ANNA_1961"))


def start(out: Path, hr: Path, lr: Path | None, *words: object, kind: str = "mix") -> Child:
    out.parent.mkdir(parents=True, exist_ok=True)
    places = ["--hr", hr, *(["--lr", lr] if lr else []), "--out", out, "--preset", "smoke"]
    how = ["--scale", 2, "--degradation", kind]
    return Child(out.parent / "log.txt", *COMMAND, *places, *how, *SETTINGS, *MACHINE, *words)


@pytest.fixture(scope="module")
def unbroken(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    child = start(out, *folders, "--adversarial")
    assert child.wait() == 0, child.text
    return out


def weights(out: Path) -> dict[str, Any]:
    """Everything that training left, by file and name."""
    return {
        f"{file}:{name}": tensor
        for file in WEIGHTS
        for name, tensor in torch.load(out / file, weights_only=True).items()
    }


def test_run_leaves_every_artefact_with_its_origin(unbroken: Path) -> None:
    record = read_json(unbroken / PIPELINE)
    assert (record["preset"], record["task"]) == ("smoke", "superresolve")
    for stage in STAGES:
        mark = read_json(unbroken / stage / DONE)
        assert {"commit", "versions", "seconds", "digest", "fingerprint"} <= set(mark)
        assert mark["fingerprint"]["inputs"]
    audit = read_pictures(unbroken)
    assert {image.split for image in audit.high} == {"train", "test"}
    assert audit.low_sets["mr"].modality == "MR"
    assert read_json(unbroken / "adversarial" / "run.json")["adversarial"] is True


def test_report_holds_what_a_reader_needs_and_no_name(unbroken: Path) -> None:
    report = read_report(unbroken)
    assert {row["method"] for row in report["scores"]} == {"bicubic", "Lanczos", "model", "adversarial"}
    assert {row["degradation"] for row in report["scores"]} == {"bicubic", "drawn"}
    assert {row["check"] for row in report["acceptance"]["rows"]} >= {"better than bicubic", "grid", "consistency"}
    assert set(report["curves"]) == {"degradation", "restore", "adversarial"}
    assert {"gradient_l1", "critic_loss", "generator_loss"} <= set(report["curves"]["adversarial"])
    assert report["degradation"]["facts"]
    page = (unbroken / "report" / "report.html").read_text()
    assert page.count("data:image/png") > 8
    written = re.sub(r"base64,[\w+/=]*", "", page)  # a picture may spell anything
    for text in (written, (unbroken / "report" / "report.json").read_text()):
        assert "MUELLER" not in text
        assert "NaN" not in text
    assert "data:image/png" not in (unbroken / "report" / "public" / "report.html").read_text()


def test_killed_in_every_stage_and_resumed_it_ends_with_the_same_weights(
    unbroken: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out, rng = tmp_path / "run", random.Random(5)
    for stage in STAGES:
        child = start(out, *folders, "--adversarial")
        child.wait_for((out / stage / "started.json").exists)
        time.sleep(rng.uniform(0, 0.8) * read_json(unbroken / stage / DONE)["seconds"])
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() in (-signal.SIGKILL, 0)
    resumed = Child(tmp_path / "log.txt", *COMMAND, "--out", out, *MACHINE)
    assert resumed.wait() == 0, resumed.text
    expected, found = weights(unbroken), weights(out)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    for file in ("audit/audit.json", "degradation/mixture.json", "degradation/degradation.json"):
        assert (out / file).read_bytes() == (unbroken / file).read_bytes(), file
    reports = [read_report(run) for run in (unbroken, out)]
    for part in ("scores", "acceptance", "variant", "consistency", "degradation"):
        assert reports[0][part] == reports[1][part], part


def test_second_call_does_nothing_and_another_setting_is_refused(
    unbroken: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    child = Child(tmp_path / "log.txt", *COMMAND, "--out", unbroken, *MACHINE)
    assert child.wait() == 0
    assert child.text.count("done before") == len(STAGES)
    child = Child(tmp_path / "log.txt", *COMMAND, "--out", unbroken, "--scale", 4, *MACHINE)
    assert child.wait() == 1
    assert "the settings of this run are for x2; name the --preset, too" in child.text
    child = Child(tmp_path / "log.txt", *COMMAND, "--out", unbroken, "--set", "restore.fit.steps=8", *MACHINE)
    assert child.wait() == 1
    assert "stage restore was made from something else (fit.steps: 8, not 6)" in child.text
    told = Child(tmp_path / "log.txt", "pipeline", "status", unbroken)
    assert told.wait() == 0
    assert told.text.count(" done in ") == len(STAGES)


def test_published_run_is_two_bundles_with_cards(unbroken: Path, tmp_path: Path) -> None:
    child = Child(tmp_path / "log.txt", "publish", unbroken, "--to", tmp_path / "bundles", "--licence", "of the test")
    assert child.wait() == 0, child.text
    plain, variant = (find_bundle(tmp_path / "bundles", f"superresolve-x2{end}") for end in ("", "-adversarial"))
    assert (plain.manifest.adversarial, variant.manifest.adversarial) == (False, True)
    for bundle in (plain, variant):
        assert {"card.md", "report.html", "restore.onnx", "restore.pt"} <= set(bundle.manifest.files)
        assert bundle.manifest.consistency is not None
        assert bundle.manifest.scores["acceptance"]["rows"]
        assert set(bundle.manifest.provenance["stages"]) == set(STAGES)
        for path in bundle.folder.iterdir():
            assert b"MUELLER" not in path.read_bytes(), path.name
    assert "trained against a discriminator" in (variant.folder / "card.md").read_text()
    assert "of the test" in (plain.folder / "card.md").read_text()


def refused(tmp_path: Path, message: str, hr: Path, lr: Path | None, *words: object, kind: str = "mix") -> None:
    """The run ends with one line that says so."""
    child = start(tmp_path / "out" / "run", hr, lr, *words, kind=kind)
    assert child.wait() == 1, child.text
    last = child.text.splitlines()[-1]
    assert last.startswith("medrestore: ")
    assert message in last, last
    assert "Traceback" not in child.text


def test_folders_that_hold_nothing_of_use_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for number in range(4):
        save(tmp_path / "flat" / f"{number}.png", np.full((80, 80), 90 + number, np.uint8))
    refused(tmp_path, "the folder holds no file", tmp_path / "empty", folders[1])
    refused(tmp_path, "the folder holds no file", folders[0], tmp_path / "empty")
    refused(tmp_path, "is no folder", tmp_path / "nowhere", folders[1])
    refused(tmp_path, "--lr", folders[0], tmp_path / "nowhere")
    refused(tmp_path, "constant", tmp_path / "flat", folders[1])
    refused(tmp_path, "the same file is a high-resolution image", folders[0], folders[0])
    refused(tmp_path, "the run would read what it writes", tmp_path, folders[1])


@pytest.mark.parametrize("kind", ["pdm", "mix"])
def test_what_is_to_be_learned_needs_low_resolution_images(folders, tmp_path: Path, kind: str) -> None:
    refused(
        tmp_path, "name their folder with --lr, or choose --degradation blind or bicubic", folders[0], None, kind=kind
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "degradation.scale=3"], "--scale: 3 is neither 2 nor 4"),
        (["--set", "restore.fit.pairs={crop=65}"], "65 is no multiple of the scale, 2"),
        (["--from", "superresolve-x2@99"], "no model 'superresolve-x2@99'"),
        (["--from", "denoise@2"], "is of another network or size"),
        (["--noise", "nowhere"], "no run of `medrestore pipeline`"),
        (["--stage", "adversarial"], "this run has no such stage; add --adversarial"),
        (["--set", "restore.fit.options={width=3}"], "network residual-upscaler: options"),
        (["--preset", "tiny"], "neither a file nor one of smoke, cpu, gpu"),
    ],
)
def test_wrong_settings_are_one_line(folders, tmp_path: Path, words: list[str], message: str) -> None:
    child = start(tmp_path / "run", *folders, *words)
    assert child.wait() == 1
    assert message in child.text
    assert len(child.text.splitlines()) == 1, child.text


def test_damaged_small_and_mixed_files_are_sorted_out(tmp_path: Path) -> None:
    """Also: bicubic needs no low-resolution images, and colour and odd sizes are taken."""
    for number, pixels in enumerate(pieces(121)[:4]):
        save(tmp_path / "hr" / "grey" / f"{'abcd'[number]}.png", pixels[: 121 - 7 * number])
        save(tmp_path / "hr" / "colour" / f"IMG_{number}.png", np.stack([pixels, pixels // 2, 255 - pixels], axis=2))
    whole = (tmp_path / "hr" / "grey" / "a.png").read_bytes()
    (tmp_path / "hr" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "hr" / "notes.txt").write_text("no image")
    save(tmp_path / "hr" / "small.png", pieces(40)[0])
    child = start(tmp_path / "run", tmp_path / "hr", None, "--stage", "audit", kind="bicubic")
    assert child.wait() == 0, child.text
    audit = read_pictures(tmp_path / "run")
    assert len(audit.high) == 8
    assert {refusal.source for refusal in audit.refused} == {"cut.png", "notes.txt", "small.png"}
    assert len({image.group for image in audit.high if image.set == "colour"}) == 4
    assert "files left out: 3" in child.text


def test_classical_run_without_low_resolution_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    child = start(tmp_path / "run", folders[0], None, kind="bicubic")
    assert child.wait() == 0, child.text
    report = read_report(tmp_path / "run")
    assert report["degradation"]["shares"] == {"bicubic": 1.0, "blind": 0.0, "pdm": 0.0}
    assert {row["degradation"] for row in report["scores"]} == {"bicubic"}
    assert report["variant"] is None
