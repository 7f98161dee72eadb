"""Which bundle a call gets, and why one is not served."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from app.catalogue import Catalogue, parse_reference
from models.bundle import DEFAULT, MANIFEST, promote, read_bundle
from models.errors import BundleInvalid, BundleNotFound, OptionError
from tests.tiny_bundle import copy_bundle, seal


def test_a_reference_names_the_newest_version_or_the_one_it_pins(repository: Path):
    for version in ("2", "10", "1.9"):
        copy_bundle(repository, "tiny", "tiny", version)
    catalogue = Catalogue(repository)
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@10"
    assert catalogue.lookup("tiny@1.9", "denoise").reference == "tiny@1.9"
    assert [b.reference for b in catalogue.bundles] == ["tiny@10", "tiny@2", "tiny@1.9", "tiny@1", "tiny-x2@1"]


def test_without_a_reference_the_only_bundle_of_the_task_serves(repository: Path):
    catalogue = Catalogue(repository)
    assert catalogue.lookup(None, "denoise").reference == "tiny@1"
    assert catalogue.lookup(None, "superresolve", 2).reference == "tiny-x2@1"


def test_without_a_reference_the_name_of_the_task_serves(repository: Path):
    copy_bundle(repository, "tiny", "denoise", "1")
    copy_bundle(repository, "tiny", "denoise", "3")
    copy_bundle(repository, "tiny-x2", "superresolve-x2", "1", scale=2)
    catalogue = Catalogue(repository)
    assert catalogue.lookup(None, "denoise").reference == "denoise@3"
    assert catalogue.lookup(None, "superresolve", 2).reference == "superresolve-x2@1"


def test_a_default_in_the_settings_goes_before_the_name_of_the_task(repository: Path):
    copy_bundle(repository, "tiny", "denoise", "1")
    catalogue = Catalogue(repository, {"denoise": "tiny@1"})
    assert catalogue.lookup(None, "denoise").reference == "tiny@1"
    assert catalogue.default("denoise") is not None


def test_several_names_and_no_default_is_no_guess(repository: Path):
    copy_bundle(repository, "tiny", "other", "1")
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
    copy_bundle(repository, "tiny", "tiny", "2")
    (repository / "tiny" / "2" / "restore.onnx").write_bytes(b"other bytes")
    (repository / "tiny-x2" / "1" / MANIFEST).write_text("{", encoding="utf-8")
    catalogue = Catalogue(repository)
    assert [bundle.reference for bundle in catalogue.bundles] == ["tiny@1"]
    assert "restore.onnx" in catalogue.broken["tiny@2"]
    assert "cannot be read" in catalogue.broken["tiny-x2@1"]
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@1"
    with pytest.raises(BundleInvalid, match="tiny@2 is not served"):
        catalogue.lookup("tiny@2", "denoise")


@pytest.fixture
def three(repository: Path) -> Path:
    """`tiny` in versions 1, 2 and 3."""
    for version in ("2", "3"):
        copy_bundle(repository, "tiny", "tiny", version)
    return repository


def test_the_promoted_version_serves_its_name_and_the_task(three: Path):
    promote(three, "tiny", "2")
    catalogue = Catalogue(three)
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@2"
    assert catalogue.lookup(None, "denoise").reference == "tiny@2"
    assert catalogue.lookup("tiny@3", "denoise").reference == "tiny@3"
    assert catalogue.warnings == {}


@pytest.mark.parametrize(
    ("pointer", "reason"), [('{"version": "9"}', "tiny@9 is promoted but not served"), ("{", "does not read")]
)
def test_a_pointer_that_leads_nowhere_is_warned_of_and_the_newest_serves(
    three: Path, caplog: pytest.LogCaptureFixture, pointer: str, reason: str
):
    (three / "tiny" / DEFAULT).write_text(pointer, encoding="utf-8")
    catalogue = Catalogue(three)
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@3"
    assert reason in catalogue.warnings["tiny"]
    assert f"{catalogue.warnings['tiny']}; tiny@3 serves" in caplog.text


def test_a_pointer_that_breaks_later_changes_nothing(three: Path):
    promote(three, "tiny", "1")
    catalogue = Catalogue(three)
    (three / "tiny" / DEFAULT).write_text("{", encoding="utf-8")
    catalogue.follow_pointer("tiny")
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@1"
    promote(three, "tiny", "2")
    catalogue.follow_pointer("tiny")
    assert (catalogue.lookup("tiny", "denoise").reference, catalogue.warnings) == ("tiny@2", {})
    (three / "tiny" / DEFAULT).unlink()
    catalogue.follow_pointer("tiny")
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@3"


def test_a_staged_bundle_is_known_to_the_workers_alone(repository: Path):
    catalogue = Catalogue(repository)
    bundle = read_bundle(copy_bundle(repository, "tiny", "tiny", "2"))
    catalogue.stage(bundle)
    assert catalogue.by_digest(bundle.digest) is bundle
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@1"
    with pytest.raises(BundleNotFound):
        catalogue.lookup("tiny@2", "denoise")
    catalogue.offer(bundle)
    assert catalogue.lookup("tiny", "denoise") is bundle
    assert [b.reference for b in catalogue.bundles] == ["tiny@2", "tiny@1", "tiny-x2@1"]


def test_a_withdrawn_bundle_is_known_by_its_digest_while_a_request_holds_it(three: Path):
    catalogue = Catalogue(three)
    held = catalogue.lookup("tiny@3", "denoise")
    catalogue.withdraw("tiny@3")
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@2"
    with pytest.raises(BundleNotFound, match="no model 'tiny@3'; available: tiny@2, tiny@1"):
        catalogue.lookup("tiny@3", "denoise")
    assert catalogue.by_digest(held.digest) is held
    digest = held.digest
    del held
    gc.collect()
    assert not catalogue.knows(digest)
    with pytest.raises(BundleNotFound):
        catalogue.by_digest(digest)


def test_a_refused_bundle_makes_way_for_the_version_before(repository: Path):
    copy_bundle(repository, "tiny", "tiny", "2")
    catalogue = Catalogue(repository)
    newest = catalogue.lookup("tiny", "denoise")
    assert catalogue.by_digest(newest.digest) is newest
    catalogue.refuse(newest.digest, "its self-test failed")
    assert catalogue.lookup("tiny", "denoise").reference == "tiny@1"
    assert catalogue.lookup(None, "denoise").reference == "tiny@1"
    assert catalogue.broken == {"tiny@2": "its self-test failed"}
    with pytest.raises(BundleInvalid, match="its self-test failed"):
        catalogue.by_digest(newest.digest)


@pytest.fixture
def adversarial(repository: Path) -> Path:
    """A repository whose model of scale 4 is adversarial alone, and that of scale 2 beside another."""
    for scale in (2, 4):
        folder = copy_bundle(repository, "tiny-x2", f"superresolve-x{scale}-adversarial", "7", scale=scale)
        seal(folder, scale, adversarial=True)
    return repository


def test_an_adversarial_model_is_nobody_s_default_and_is_had_by_its_name(adversarial: Path):
    catalogue = Catalogue(adversarial)
    assert catalogue.lookup(None, "superresolve", 2).reference == "tiny-x2@1"
    named = catalogue.lookup("superresolve-x2-adversarial", "superresolve", 2)
    assert named.manifest.adversarial
    assert catalogue.default("superresolve", 4) is None
    with pytest.raises(BundleNotFound, match="no default model for superresolve-x4: name one of superresolve-x4-adv"):
        catalogue.lookup(None, "superresolve", 4)


def test_a_default_stays_what_it_was_when_an_adversarial_model_comes_or_is_promoted(adversarial: Path):
    catalogue = Catalogue(adversarial)
    late = copy_bundle(adversarial, "tiny-x2", "superresolve-x2-adversarial", "8", scale=2)
    seal(late, 2, adversarial=True)
    promote(adversarial, "superresolve-x2-adversarial", "8")
    for found in (catalogue, Catalogue(adversarial)):
        if found is catalogue:
            found.offer(read_bundle(late))
            found.follow_pointer("superresolve-x2-adversarial")
        assert found.lookup("superresolve-x2-adversarial", "superresolve", 2).reference.endswith("@8")
        assert found.lookup(None, "superresolve", 2).reference == "tiny-x2@1"


def test_an_adversarial_version_of_another_name_is_broken_and_the_one_before_serves(repository: Path):
    folder = copy_bundle(repository, "tiny-x2", "tiny-x2", "2", scale=2)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"adversarial": false', '"adversarial": true'))
    catalogue = Catalogue(repository)
    assert "must end in -adversarial" in catalogue.broken["tiny-x2@2"]
    assert catalogue.lookup("tiny-x2", "superresolve", 2).reference == "tiny-x2@1"
