"""Which bundle a call gets, and why one is not served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.catalogue import Catalogue, parse_reference
from models.bundle import MANIFEST
from models.errors import BundleInvalid, BundleNotFound, OptionError
from tests.tiny_bundle import seal


def copy(repository: Path, source: str, name: str, version: str, scale: int = 1) -> None:
    """The bundle `source`, version 1, under another name and version."""
    folder = repository / name / version
    shutil.copytree(repository / source / "1", folder)
    (folder / MANIFEST).unlink()
    seal(folder, scale)


def test_a_reference_names_the_newest_version_or_the_one_it_pins(repository: Path):
    for version in ("2", "10", "1.9"):
        copy(repository, "tiny", "tiny", version)
    catalogue = Catalogue(repository)
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@10"
    assert catalogue.lookup("tiny@1.9", "denoise").reference == "tiny@1.9"
    assert [b.reference for b in catalogue.bundles] == ["tiny@10", "tiny@2", "tiny@1.9", "tiny@1", "tiny-x2@1"]


def test_without_a_reference_the_only_bundle_of_the_task_serves(repository: Path):
    catalogue = Catalogue(repository)
    assert catalogue.lookup(None, "denoise").reference == "tiny@1"
    assert catalogue.lookup(None, "superresolve", 2).reference == "tiny-x2@1"


def test_without_a_reference_the_name_of_the_task_serves(repository: Path):
    copy(repository, "tiny", "denoise", "1")
    copy(repository, "tiny", "denoise", "3")
    copy(repository, "tiny-x2", "superresolve-x2", "1", scale=2)
    catalogue = Catalogue(repository)
    assert catalogue.lookup(None, "denoise").reference == "denoise@3"
    assert catalogue.lookup(None, "superresolve", 2).reference == "superresolve-x2@1"


def test_a_default_in_the_settings_goes_before_the_name_of_the_task(repository: Path):
    copy(repository, "tiny", "denoise", "1")
    catalogue = Catalogue(repository, {"denoise": "tiny@1"})
    assert catalogue.lookup(None, "denoise").reference == "tiny@1"
    assert catalogue.default("denoise") is not None


def test_several_names_and_no_default_is_no_guess(repository: Path):
    copy(repository, "tiny", "other", "1")
    catalogue = Catalogue(repository)
    with pytest.raises(BundleNotFound, match="name one of other, tiny"):
        catalogue.lookup(None, "denoise")
    assert catalogue.default("denoise") is None


def test_what_is_not_there_is_not_found(repository: Path):
    catalogue = Catalogue(repository)
    with pytest.raises(BundleNotFound, match="available: tiny@1, tiny-x2@1"):
        catalogue.lookup("large", "denoise")
    with pytest.raises(BundleNotFound, match="tiny@2"):
        catalogue.lookup("tiny@2", "denoise")
    with pytest.raises(BundleNotFound, match="superresolve-x4: none is served"):
        catalogue.lookup(None, "superresolve", 4)
    with pytest.raises(BundleNotFound):
        catalogue.by_digest("0" * 64)


def test_an_empty_or_absent_repository_serves_nothing(tmp_path: Path):
    assert Catalogue(tmp_path / "absent").bundles == []


@pytest.mark.parametrize(("task", "scale"), [("superresolve", 2), ("superresolve", 4)])
def test_a_model_for_another_task_is_a_wrong_option(repository: Path, task: str, scale: int):
    with pytest.raises(OptionError, match=f"tiny@1 does denoise, not superresolve-x{scale}"):
        Catalogue(repository).lookup("tiny", task, scale)


@pytest.mark.parametrize("text", ["", "@1", "tiny@", "tiny@one", "Tiny", "../tiny", "tiny@1@2", "tiny/1"])
def test_a_malformed_reference_is_a_wrong_option(text: str):
    with pytest.raises(OptionError, match="name@version"):
        parse_reference(text)


def test_unreadable_bundles_are_listed_with_their_reason_and_not_served(repository: Path):
    copy(repository, "tiny", "tiny", "2")
    (repository / "tiny" / "2" / "restore.onnx").write_bytes(b"other bytes")
    (repository / "tiny-x2" / "1" / MANIFEST).write_text("{", encoding="utf-8")
    catalogue = Catalogue(repository)
    assert [bundle.reference for bundle in catalogue.bundles] == ["tiny@1"]
    assert "restore.onnx" in catalogue.broken["tiny@2"]
    assert "cannot be read" in catalogue.broken["tiny-x2@1"]
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@1"
    with pytest.raises(BundleInvalid, match="tiny@2 is not served"):
        catalogue.lookup("tiny@2", "denoise")


def test_a_refused_bundle_makes_way_for_the_version_before(repository: Path):
    copy(repository, "tiny", "tiny", "2")
    catalogue = Catalogue(repository)
    newest = catalogue.lookup("tiny", "denoise")
    assert catalogue.by_digest(newest.digest) is newest
    catalogue.refuse(newest.digest, "its self-test failed")
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@1"
    assert catalogue.lookup(None, "denoise").reference == "tiny@1"
    assert catalogue.broken == {"tiny@2": "its self-test failed"}
    with pytest.raises(BundleInvalid, match="its self-test failed"):
        catalogue.by_digest(newest.digest)
