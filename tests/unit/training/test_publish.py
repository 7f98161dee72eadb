"""Publishing: a verified version beside the one that serves; the default only by promotion; no name of a file in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medrestore
import training.export
from models.bundle import DEFAULT, default_version, find_bundle, promote, read_bundle
from tests.tiny_run import SECRET, mark_done, write_stages
from training.pipeline.record import write_json
from training.publish import next_version, provenance, publish, replay_golden
from training.report.acceptance import FAIL, PASS
from training.report.build import HTML, PUBLIC


def write_report(run: Path, verdict: str) -> None:
    """A report that says so, and marks the stage as done."""
    rows = [{"check": "BM3D", "asked": "above", "found": "+0.1 dB", "verdict": verdict, "note": ""}]
    write_json(run / "report" / "report.json", {"acceptance": {"rows": rows, "passed": verdict == PASS}})
    for path in (run / "report" / HTML, run / "report" / PUBLIC):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<!DOCTYPE html><title>{path.parent.name}</title>")
    mark_done(run, "report")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, and a repository `bundles` that its model was published to once, as version 1. Read only."""
    folder = tmp_path_factory.mktemp("publish")
    write_report(write_stages(folder / "run", images=1), PASS)
    publish(folder / "run", folder / "bundles", "denoise", "1")
    return folder


@pytest.fixture
def run(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "run", tmp_path / "run"))


@pytest.fixture
def repository(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "bundles", tmp_path / "bundles"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One shape and batch for the comparison of the exports: that it is made is `test_export`'s matter."""
    monkeypatch.setattr(training.export, "SHAPES", ((64, 80),))
    monkeypatch.setattr(training.export, "BATCHES", (1,))


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = medrestore.main(["publish", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_bundle_holds_the_report_and_verifies(built: Path) -> None:
    bundle = find_bundle(built / "bundles", "denoise@1")
    assert {"report.html", "report.json", "restore.onnx", "estimate.ts"} <= set(bundle.manifest.files)
    assert "public" in (bundle.folder / "report.html").read_text()
    assert bundle.manifest.scores["acceptance"]["passed"] is True
    assert sorted(path.name for path in (built / "bundles").iterdir()) == ["denoise"]


def test_nothing_in_the_bundle_names_a_file_of_the_hospital(built: Path) -> None:
    for path in (built / "bundles" / "denoise" / "1").iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
        assert str(built).encode() not in path.read_bytes(), path.name
    found: dict[str, Any] = provenance(built / "run")
    assert found["data"]["noisy"] == {"folder_sha256": "a" * 64, "sha256": ["0" * 64]}
    assert set(found["stages"]) == {"audit", "preliminary", "synthesis", "profound", "report"}
    assert found["pipeline"]["seed"] == 0
    assert len(found["pipeline"]["commit"]) > 6


def test_a_report_that_lacks_its_public_form_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    (run / "report" / PUBLIC).unlink()
    status, _, err = call(capsys, run, "--to", tmp_path / "bundles")
    assert status == 1
    assert "make stage report anew" in err


@pytest.mark.usefixtures("quick")
def test_the_version_that_serves_goes_on_serving(run: Path, repository: Path, capsys) -> None:
    status, out, err = call(capsys, run, "--to", repository)
    assert (status, err) == (0, "")
    assert "published denoise@2" in out
    assert "denoise@1 remains the default" in out
    assert find_bundle(repository, "denoise").reference == "denoise@1"
    assert find_bundle(repository, "denoise@2").manifest.version == "2"


@pytest.mark.usefixtures("quick")
def test_promotion_with_a_passed_table_makes_it_the_default(run: Path, repository: Path, capsys) -> None:
    status, out, _ = call(capsys, run, "--to", repository, "--promote")
    assert status == 0
    assert "promoted: denoise@2" in out
    assert default_version(repository, "denoise") == "2"


@pytest.mark.usefixtures("quick")
def test_promotion_without_a_passed_table_is_refused(run: Path, repository: Path, capsys) -> None:
    write_report(run, FAIL)
    status, out, err = call(capsys, run, "--to", repository, "--promote")
    assert status == 1
    assert "published denoise@2" in out
    assert "fail: BM3D: above; +0.1 dB" in out
    assert "not promoted" in err
    assert find_bundle(repository, "denoise").reference == "denoise@1"


@pytest.mark.usefixtures("quick")
def test_a_pointer_that_was_set_stays(run: Path, repository: Path, capsys) -> None:
    promote(repository, "denoise", "1")
    before = (repository / "denoise" / DEFAULT).read_bytes()
    assert call(capsys, run, "--to", repository, "--version", "1.5")[0] == 0
    assert (repository / "denoise" / DEFAULT).read_bytes() == before


@pytest.mark.usefixtures("quick")
def test_the_first_version_serves(run: Path, tmp_path: Path, capsys) -> None:
    status, out, _ = call(capsys, run, "--to", tmp_path / "new" / "bundles", "--name", "denoise-ct")
    assert status == 0
    assert "only version of denoise-ct" in out
    assert find_bundle(tmp_path / "new" / "bundles", "denoise-ct").manifest.name == "denoise-ct"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--version", "1"], "denoise@1 exists already"),
        (["--version", "latest"], "one to three numbers"),
        (["--name", "No Name"], "lower-case letters"),
    ],
)
def test_impossible_names_and_versions_are_refused(run: Path, repository: Path, words, message, capsys) -> None:
    status, _, err = call(capsys, run, "--to", repository, *words)
    assert status == 1
    assert message in err
    assert len(err.splitlines()) == 1


def test_unfinished_run_is_refused(run: Path, repository: Path, capsys) -> None:
    (run / "profound" / "stage.json").unlink()
    status, _, err = call(capsys, run, "--to", repository)
    assert status == 1
    assert "stage profound is not done" in err


@pytest.mark.usefixtures("quick")
def test_failed_export_leaves_the_repository_as_it_was(run: Path, repository: Path, monkeypatch) -> None:
    def wrong(path: Path, graph: training.export.Graph, arrays: training.export.Arrays) -> training.export.Arrays:
        return {name: value + 2e-4 for name, value in graph.eager(arrays).items()}

    before = sorted(repository.rglob("*"))
    monkeypatch.setitem(training.export.RUNNERS, "onnx", wrong)
    with pytest.raises(ValueError, match="onnx differs from eager"):
        publish(run, repository, "denoise", "2")
    assert sorted(repository.rglob("*")) == before


def test_golden_output_that_is_not_the_graphs_is_found(repository: Path) -> None:
    folder = repository / "denoise" / "1"
    bundle = read_bundle(folder)
    replay_golden(bundle)
    with np.load(folder / "golden.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(folder / "golden.npz", **(arrays | {"restore.out.restored": arrays["restore.out.restored"] + 1e-3}))
    with pytest.raises(ValueError, match="restore: onnx differs from the stored output"):
        replay_golden(bundle)


def test_next_version_follows_the_newest(repository: Path, tmp_path: Path) -> None:
    assert next_version(tmp_path / "none", "denoise") == "1"
    assert next_version(repository, "denoise") == "2"
    shutil.copytree(repository / "denoise" / "1", repository / "denoise" / "10.2")
    assert next_version(repository, "denoise") == "11"


def test_manifest_is_json_without_what_json_lacks(built: Path) -> None:
    text = (built / "bundles" / "denoise" / "1" / "manifest.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
