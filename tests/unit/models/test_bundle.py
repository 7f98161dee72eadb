"""The bundle contract: what is written can be read, and nothing that is wrong is."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bundle import (
    DEFAULT,
    READABLE_SCHEMAS,
    SCHEMA,
    Bundle,
    FileEntry,
    Manifest,
    default_version,
    find_bundle,
    list_bundles,
    parse_manifest,
    promote,
    read_bundle,
    sha256_of,
    version_key,
    write_manifest,
)
from models.errors import BundleInvalid, BundleNotFound

MANIFEST = Manifest(
    name="denoise",
    version="1",
    task="denoise",
    scale=1,
    network="noise-map-unet",
    summary="",
    licence="",
    graphs={"estimate": {"onnx": "estimate.onnx"}, "restore": {"onnx": "restore.onnx"}},
    files={},
    tiles=[(64, 64), (128, 128)],
    multiple=8,
    halo=16,
    trained_sigma=(0.1, 0.2),
)
SUPERRESOLVE = {"task": "superresolve", "scale": 2, "graphs": {"restore": {"onnx": "restore.onnx"}}}


def write_bundle(repository: Path, version: str = "1", name: str = "denoise") -> Path:
    """A bundle whose graphs are a few bytes: enough for everything but running it."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    files = {}
    for graph in ("estimate", "restore"):
        file = folder / f"{graph}.onnx"
        file.write_bytes(f"{graph} {version}".encode())
        files[file.name] = FileEntry(sha256_of(file), file.stat().st_size)
    write_manifest(folder, replace(MANIFEST, name=name, version=version, files=files))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path))
    assert bundle.reference == "denoise@1"
    assert bundle.manifest.tiles == [(64, 64), (128, 128)]
    assert bundle.manifest.trained_sigma == (0.1, 0.2)
    assert bundle.graph("restore", "onnx").read_bytes() == b"restore 1"


def test_digest_changes_with_any_file(tmp_path: Path) -> None:
    first, second = (read_bundle(write_bundle(tmp_path, version)).digest for version in ("1", "2"))
    assert first != second
    assert len(first) == 64


@pytest.mark.parametrize("damage", [b"restore 2", b"restore 1 and more", b""])
def test_changed_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    folder = write_bundle(tmp_path)
    (folder / "restore.onnx").write_bytes(damage)
    with pytest.raises(BundleInvalid, match=r"restore\.onnx is not the file the manifest names"):
        read_bundle(folder)


def test_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    (folder / "estimate.onnx").unlink()
    with pytest.raises(BundleInvalid, match=r"lacks estimate\.onnx"):
        read_bundle(folder)


def test_folder_must_bear_the_bundle_s_name(tmp_path: Path) -> None:
    write_bundle(tmp_path).rename(tmp_path / "denoise" / "3")
    with pytest.raises(BundleInvalid, match="holds a manifest of denoise/1"):
        read_bundle(tmp_path / "denoise" / "3")


def test_graph_without_a_checksum_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    raw = json.loads((folder / "manifest.json").read_text())
    del raw["files"]["restore.onnx"]
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match="without a checksum"):
        read_bundle(folder)


def test_unknown_fields_are_ignored_and_unknown_schemas_are_not(tmp_path: Path) -> None:
    raw = json.loads((write_bundle(tmp_path) / "manifest.json").read_text())
    assert parse_manifest(json.dumps(raw | {"of-the-future": 1})).name == "denoise"
    with pytest.raises(BundleInvalid, match="schema 99 is not readable"):
        parse_manifest(json.dumps(raw | {"schema": 99}))


def test_a_manifest_of_before_adversarial_training_is_readable_and_keeps_its_digest(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    raw = json.loads((folder / "manifest.json").read_text())
    old = json.dumps({key: value for key, value in raw.items() if key not in ("adversarial", "consistency")})
    (folder / "manifest.json").write_text(old)
    bundle = read_bundle(folder)
    assert (bundle.manifest.adversarial, bundle.manifest.consistency) == (False, None)
    assert bundle.digest == hashlib.sha256(old.encode()).hexdigest()


def test_what_an_adversarial_bundle_promises_is_read_back() -> None:
    name = "superresolve-x2-adversarial"
    manifest = replace(MANIFEST, name=name, adversarial=True, consistency=38.5, **SUPERRESOLVE)  # type: ignore[arg-type]
    assert parse_manifest(json.dumps(asdict(manifest))) == manifest


def test_the_schema_before_the_current_one_is_readable() -> None:
    assert set(READABLE_SCHEMAS) == {max(SCHEMA - 1, 1), SCHEMA}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"schema": 1}', '{"schema": 1, "files": 3, "tiles": 4}', 100_000 * "["],
    ids=lambda text: text[:12] or "empty",
)
def test_damaged_manifest_is_a_bundle_error(text: str) -> None:
    with pytest.raises(BundleInvalid):
        parse_manifest(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../etc"}, "bundle name"),
        ({"version": "latest"}, "bundle version"),
        ({"task": "paint"}, "is none of"),
        ({"scale": 2}, "does not fit task"),
        ({"tiles": [(60, 64)]}, "multiples of 8"),
        ({"tiles": [(0, 64)]}, "positive multiples of 8"),
        ({"multiple": 0}, "multiple 0 must be at least 1"),
        ({"halo": -8}, "halo -8 at least 0"),
        ({"graphs": {"restore": {"onnx": "restore.onnx"}}}, "holds the graphs"),
        (
            {"graphs": {"estimate": {"onnx": "../x.onnx"}, "restore": {"onnx": "restore.onnx"}}},
            "not a plain file name",
        ),
        ({"adversarial": True}, "must end in -adversarial"),
        ({"consistency": 40.0}, "of a superresolve bundle"),
        (SUPERRESOLVE | {"consistency": float("nan")}, "must be 0 to 120 dB"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BundleInvalid, match=message):
        replace(MANIFEST, **change)  # type: ignore[arg-type]


def test_missing_format_is_named() -> None:
    with pytest.raises(BundleInvalid, match="no graph 'restore' as torchscript"):
        Bundle(Path(), MANIFEST, "").graph("restore", "torchscript")


def test_newest_version_is_found_by_number_not_by_letter(tmp_path: Path) -> None:
    for version in ("2", "10", "9.1"):
        write_bundle(tmp_path, version)
    write_bundle(tmp_path, "1", name="another")
    assert find_bundle(tmp_path, "denoise").reference == "denoise@10"
    assert find_bundle(tmp_path, "denoise@9.1").reference == "denoise@9.1"
    assert [f"{f.parent.name}@{f.name}" for f in list_bundles(tmp_path)] == [
        "another@1",
        "denoise@10",
        "denoise@9.1",
        "denoise@2",
    ]


def test_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with pytest.raises(BundleNotFound, match=r"no model 'denoise@7'; available: denoise@1"):
        find_bundle(tmp_path, "denoise@7")


@given(st.lists(st.integers(0, 999), min_size=1, max_size=3), st.lists(st.integers(0, 999), min_size=1, max_size=3))
def test_versions_sort_as_numbers(a: list[int], b: list[int]) -> None:
    first, second = (".".join(map(str, parts)) for parts in (a, b))
    assert (version_key(first) < version_key(second)) == (a < b)


def test_the_promoted_version_goes_before_the_newest(tmp_path: Path) -> None:
    for version in ("1", "2", "3"):
        write_bundle(tmp_path, version)
    assert default_version(tmp_path, "denoise") is None
    for version in ("2", "1", "3"):
        assert promote(tmp_path, "denoise", version).reference == f"denoise@{version}"
        assert default_version(tmp_path, "denoise") == version
        assert find_bundle(tmp_path, "denoise").reference == f"denoise@{version}"
        assert find_bundle(tmp_path, "denoise@2").reference == "denoise@2"
    assert sorted(path.name for path in (tmp_path / "denoise").iterdir()) == ["1", "2", "3", DEFAULT]


def test_what_does_not_verify_is_not_promoted(tmp_path: Path) -> None:
    write_bundle(tmp_path, "1")
    (write_bundle(tmp_path, "2") / "restore.onnx").write_bytes(b"")
    promote(tmp_path, "denoise", "1")
    with pytest.raises(BundleInvalid, match=r"restore\.onnx"):
        promote(tmp_path, "denoise", "2")
    with pytest.raises(BundleNotFound):
        promote(tmp_path, "denoise", "3")
    assert default_version(tmp_path, "denoise") == "1"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"version": 1}', '{"version": "../1"}', 9999 * "["])
def test_a_broken_pointer_is_warned_of_and_counts_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    for version in ("1", "2"):
        write_bundle(tmp_path, version)
    (tmp_path / "denoise" / DEFAULT).write_text(text)
    assert default_version(tmp_path, "denoise") is None
    assert find_bundle(tmp_path, "denoise").reference == "denoise@2"
    assert "denoise/default.json" in caplog.text
    promote(tmp_path, "denoise", "1")
    assert find_bundle(tmp_path, "denoise").reference == "denoise@1"


def test_a_promoted_version_that_is_gone_makes_way_for_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in ("1", "2"):
        write_bundle(tmp_path, version)
    promote(tmp_path, "denoise", "2")
    (tmp_path / "denoise" / "2" / "manifest.json").unlink()
    assert find_bundle(tmp_path, "denoise").reference == "denoise@1"
    assert "version 2 is promoted but not there" in caplog.text


def test_bundles_on_their_way_in_are_passed_over(tmp_path: Path) -> None:
    write_bundle(tmp_path, "1")
    shutil.copytree(tmp_path / "denoise" / "1", tmp_path / ".staged" / "2")
    shutil.copytree(tmp_path / "denoise" / "1", tmp_path / "denoise" / ".2")
    assert [f.name for f in list_bundles(tmp_path)] == ["1"]
