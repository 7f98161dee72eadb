"""Stage 0 on folders as users have them: several formats, damage, duplicates, few images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.dicom_objects import dataset_of, file_of, packaged
from tests.noisy_folder import noisy_pixels, save, write_folders
from training.pipeline import audit, photograph
from training.pipeline.audit import AuditConfig
from training.pipeline.intake import SetRule
from training.pipeline.record import AUDIT, Audit, read_audit, read_plane

Run = Callable[..., Audit]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_folders(tmp_path)


@pytest.fixture
def run(folders: tuple[Path, Path], tmp_path: Path) -> Run:
    """Audits the two folders and reads what was written."""

    def audited(seed: int = 0, out: str = "out", **options: Any) -> Audit:
        audit.run(tmp_path / out, AuditConfig(**options), noisy=folders[0], clean=folders[1], seed=seed)
        return read_audit(tmp_path / out)

    return audited


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reasons(found: Audit) -> dict[str, str]:
    return {refusal.source: refusal.reason for refusal in found.refused}


def test_planes_are_the_images_on_the_scale_of_their_set(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = run()
    (record,) = found.sets.values()
    assert list(found.sets) == ["ct"]
    assert record.images == len(found.images) == 8
    pooled = np.stack([read_plane(tmp_path / "out", image.file) for image in found.images])
    np.testing.assert_allclose(np.quantile(pooled, [0.005, 0.995]), [0, 1], atol=0.02)
    assert pooled.min() < 0  # not clipped
    for image, plane in zip(found.images, pooled, strict=True):
        stored = np.asarray(Image.open(folders[0] / image.source)).astype(float)
        np.testing.assert_allclose(plane * (image.high - image.low) + image.low, stored, atol=0.01)
        assert plane.dtype == np.float32
        assert (image.rows, image.columns) == plane.shape


def test_colour_of_the_noise_is_found(run: Run) -> None:
    """The images carry noise through the kernel [1 2 1] both ways: 2/3 at one pixel's distance, 1/6 at two."""
    (record,) = run(test_share=0.25).sets.values()
    assert record.lag1 == pytest.approx((2 / 3, 2 / 3), abs=0.1)
    correlation = np.array(record.correlation)
    assert correlation.shape == (11, 11)
    assert correlation[5, 5] == 1
    assert record.stride == 3


def test_patients_are_told_by_file_name_and_kept_whole(run: Run) -> None:
    found = run(rules=(SetRule("ct", group=r"p\d+"),), test_share=0.25)
    sides: dict[str, set[str]] = {}
    for image in found.images:
        sides.setdefault(image.group, set()).add(image.split)
        assert image.source.split("/")[1][:2] not in image.group
    assert len(sides) == 4
    assert all(len(side) == 1 for side in sides.values())
    assert {side for both in sides.values() for side in both} == {"train", "test"}


def test_a_pattern_names_one_patient_in_all_folders_and_types(run: Run, folders: tuple[Path, Path]) -> None:
    stored = np.asarray(Image.open(next(folders[0].rglob("p0*.png"))))
    (folders[0] / "ct" / "later").mkdir()
    Image.fromarray(stored // 2).save(folders[0] / "ct" / "later" / "p0x9.png")
    Image.fromarray((stored // 257).astype(np.uint8)).save(folders[0] / "ct" / "p0x9.png")
    found = run(rules=(SetRule("ct", "", (0.0, 100.0), r"p\d+"), SetRule("ct/*", "", (0.0, 100.0), r"p\d+")))
    assert len({image.group for image in found.images}) == 4
    assert len(found.sets) == 3
    assert all((record.low, record.high) == (0.0, 100.0) for record in found.sets.values())


def test_without_a_pattern_trailing_digits_tell_images_of_one_patient(run: Run) -> None:
    found = run()  # p0x0.png, p0x1.png, p1x2.png, ...
    assert len({image.group for image in found.images}) == 4


def test_equal_calls_make_equal_folders(run: Run, tmp_path: Path) -> None:
    run()
    run(out="again")
    assert content(tmp_path / "out") == content(tmp_path / "again")
    first, other = run(seed=0), run(seed=1, out="other")
    assert [i.file for i in first.images] == [i.file for i in other.images]


def test_stopped_audit_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    whole = content(tmp_path / "out")
    (tmp_path / "out" / AUDIT).unlink()
    for number in (3, 7):
        (tmp_path / "out" / "audit" / "noisy" / f"n{number:06}.npy").unlink()
    written = []
    write = audit.write_plane
    monkeypatch.setattr(audit, "write_plane", lambda path, plane: (written.append(path.name), write(path, plane)))
    run()
    assert written == ["n000003.npy", "n000007.npy"]
    assert content(tmp_path / "out") == whole


def test_other_images_leave_no_stale_plane(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    run()
    for path in sorted((folders[0] / "ct").iterdir())[:3]:
        path.unlink()
    found = run()
    assert len(found.images) == len(list((tmp_path / "out" / "audit" / "noisy").iterdir())) == 5
    for image in found.images:
        stored = np.asarray(Image.open(folders[0] / image.source)).astype(float)
        plane = read_plane(tmp_path / "out", image.file)
        np.testing.assert_allclose(plane * (image.high - image.low) + image.low, stored, atol=0.01)


def test_unusable_files_are_refused_and_nothing_else_is_lost(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ct = folders[0] / "ct"
    (ct / "damaged.png").write_bytes((ct / "p0x0.png").read_bytes()[:2000])
    (ct / "empty.dcm").write_bytes(b"")
    (ct / "notes.txt").write_text("no image")
    (ct / ".hidden").write_text("left out in silence")
    save(ct / "constant.png", np.full((80, 80), 7, np.uint16))
    save(ct / "small.png", noisy_pixels(1, 40, 90))
    (ct / "copy.png").write_bytes((ct / "p1x2.png").read_bytes())
    np.save(ct / "infinite.npy", np.full((80, 80), np.inf, np.float32))
    found = run()
    assert len(found.images) == 8
    told = reasons(found)
    assert set(told) == {
        f"ct/{name}"
        for name in ("damaged.png", "empty.dcm", "notes.txt", "constant.png", "small.png", "p1x2.png", "infinite.npy")
    }
    assert told["ct/constant.png"].startswith("constant")
    assert "40 x 90" in told["ct/small.png"]
    assert told["ct/p1x2.png"] == "the same file as ct/copy.png"
    used, left_out, *named = audit.findings(tmp_path / "out")
    assert used.startswith("noisy images: 8, sets: 1,")
    assert left_out.startswith("files left out: 7;")
    assert any("ct/constant.png: constant" in line for line in named)


def test_mixed_sizes_formats_and_colour(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = folders[0] / "us"
    other.mkdir()
    pixels = noisy_pixels(30, 70, 90)
    tifffile.imwrite(other / "a.tif", pixels)
    np.save(other / "b.npy", noisy_pixels(31, 128, 64))
    colour = (np.stack([noisy_pixels(32, 90, 71)] * 3, axis=-1) // 256).astype(np.uint8)
    save(other / "c.png", colour)
    save(other / "d.png", colour[:, ::-1, 0])
    found = run()
    assert {name: record.images for name, record in found.sets.items()} == {
        "ct": 8,
        "us (uint16)": 2,
        "us (uint8)": 2,
    }
    assert any("in colour: 1" in warning for warning in found.sets["us (uint8)"].warnings)
    assert {image.modality for image in found.images} == {"CT", "US"}
    for image in found.images:
        assert read_plane(tmp_path / "out", image.file).shape == (image.rows, image.columns)
    assert not found.refused


def test_too_few_images_are_named(run: Run, folders: tuple[Path, Path]) -> None:
    for path in sorted((folders[0] / "ct").iterdir())[3:]:
        path.unlink()
    found = run()
    assert any("3 images only" in warning for warning in found.sets["ct"].warnings)
    assert {image.split for image in found.images} == {"train", "test"}
    (folders[0] / "ct" / "p0x0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match=r"2 of its images can be used.*p0x0.png"):
        run(out="fewer")


def test_empty_and_missing_folders_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for noisy, clean in ((tmp_path / "empty", folders[1]), (folders[0], tmp_path / "empty")):
        with pytest.raises(ValueError, match="empty: the folder holds no file"):
            audit.run(tmp_path / "out", AuditConfig(), noisy=noisy, clean=clean, seed=0)
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        audit.run(tmp_path / "out", AuditConfig(), noisy=tmp_path / "nowhere", clean=folders[1], seed=0)


def write_dicom(path: Path, number: int, patient: str, kernel: str, **attributes: Any) -> None:
    pixels = (noisy_pixels(number).astype(np.int32) // 100 - 1000).astype(np.int16)
    data = dataset_of(
        pixels, PatientID=patient, PatientName="Doe^Jane", ConvolutionKernel=kernel, RescaleSlope=1,
        RescaleIntercept=0, StudyInstanceUID=f"1.2.{number}", **attributes,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_of(data))


def test_dicom_sets_follow_the_scanner_and_groups_the_patient(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number in range(12):
        kernel = "BONE" if number >= 6 else "SOFT"
        write_dicom(tmp_path / "dicom" / f"{number:02}.dcm", number, f"SECRET{number % 6}", kernel)
    audit.run(tmp_path / "out", AuditConfig(), noisy=tmp_path / "dicom", clean=folders[1], seed=0)
    found = read_audit(tmp_path / "out")
    assert sorted(record.images for record in found.sets.values()) == [6, 6]
    assert all(name.startswith("CT-") for name in found.sets)
    assert all((record.low, record.high) == (-160.0, 240.0) for record in found.sets.values())
    assert len({image.group for image in found.images}) == 6
    text = (tmp_path / "out" / AUDIT).read_text() + (tmp_path / "out" / "audit" / "plan.json").read_text()
    assert "SECRET" not in text
    assert "Doe" not in text
    plane = read_plane(tmp_path / "out", found.images[0].file)
    hounsfield = noisy_pixels(0).astype(np.int32) // 100 - 1000
    np.testing.assert_allclose(plane, (hounsfield + 160) / 400, atol=1e-5)


def test_packaged_dicom_files_are_taken_in(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Real files, one truncated, one that is no image, the same image in several transfer syntaxes."""
    names = ("CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_truncated.dcm", "rtplan.dcm")
    (tmp_path / "dicom").mkdir()
    for name in names:
        (tmp_path / "dicom" / name).write_bytes(packaged(name))
    frames = np.stack([noisy_pixels(number) for number in range(10)])
    frames[3] = 100  # constant: left out, the other frames are not
    (tmp_path / "dicom" / "frames.dcm").write_bytes(file_of(dataset_of(frames, Modality="MR")))
    audit.run(tmp_path / "out", AuditConfig(frames=4), noisy=tmp_path / "dicom", clean=folders[1], seed=0)
    found = read_audit(tmp_path / "out")
    assert set(reasons(found)) == {"MR_truncated.dcm", "rtplan.dcm"}
    assert [image.frame for image in found.images if image.source == "frames.dcm"] == [0, 6, 9]
    assert {image.modality for image in found.images} == {"CT", "MR"}
    for record in found.sets.values():
        assert record.rician == (record.modality == "MR")
        assert record.low == (0.0 if record.rician else -160.0)


def test_dark_where_the_smallest_value_is_white(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number in range(3):
        pixels = noisy_pixels(number)
        for name, values in (("MONOCHROME1", 65535 - pixels), ("MONOCHROME2", pixels)):
            data = dataset_of(values, Modality="DX", PhotometricInterpretation=name, PatientID=str(number))
            path = tmp_path / name / f"{number}.dcm"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(file_of(data))
    planes = []
    for name in ("MONOCHROME1", "MONOCHROME2"):
        audit.run(tmp_path / f"out{name}", AuditConfig(), noisy=tmp_path / name, clean=folders[1], seed=0)
        planes.append(read_plane(tmp_path / f"out{name}", "audit/noisy/n000001.npy"))
    np.testing.assert_allclose(*planes, atol=1e-4)


def test_photographs_are_luminance_and_noisy_ones_are_left_out(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    smooth = np.linspace(60, 190, 150)[:, None, None] * np.ones((1, 140, 3))
    save(folders[1] / "colour.png", smooth.astype(np.uint8))
    save(
        folders[1] / "noisy.png",
        np.clip(smooth + rng.normal(0, 20, smooth.shape[:2])[..., None], 0, 255).astype(np.uint8),
    )
    save(folders[1] / "tiny.png", np.arange(2500, dtype=np.uint8).reshape(50, 50))
    (folders[1] / "leak.png").write_bytes((folders[0] / "ct" / "p0x0.png").read_bytes())
    found = run()
    told = reasons(found)
    assert set(told) == {"noisy.png", "tiny.png", "leak.png"}
    assert "own noise" in told["noisy.png"]
    assert told["leak.png"] == "the same file as one of the noisy images"
    assert len(found.clean) == 6
    assert {image.split for image in found.clean} == {"train", "test"}
    planes = {image.source: read_plane(tmp_path / "out", image.file) for image in found.clean}
    np.testing.assert_allclose(planes["colour.png"][:, 0] * 255, smooth[:, 0, 0].astype(np.uint8), atol=0.01)
    assert all(0 <= plane.min() <= plane.max() <= 1 for plane in planes.values())


def test_photographs_are_reduced_when_asked(run: Run, tmp_path: Path) -> None:
    found = run(clean_reduce=2)
    assert {read_plane(tmp_path / "out", image.file).shape for image in found.clean} == {(80, 90)}


def test_photographs_are_held_back_by_name_when_asked(run: Run) -> None:
    first = min(image.source for image in run(out="by-lot").clean)
    found = run(clean_test=(first,))
    assert [image.source for image in found.clean if image.split == "test"] == [first]


def test_own_noise_is_not_mistaken_for_texture() -> None:
    y, x = np.mgrid[:200, :200] / 200
    textured = np.where(x < 0.7, 0.5 + 0.2 * np.sin(300 * x) * np.sin(280 * y), 0.5 + 0.1 * y).astype(np.float32)
    textured += np.random.default_rng(0).normal(0, 0.002, textured.shape).astype(np.float32)
    assert photograph.own_noise(textured) < 0.01
    noisy = textured + np.random.default_rng(1).normal(0, 0.06, textured.shape).astype(np.float32)
    assert photograph.own_noise(noisy) > 0.04


@pytest.mark.parametrize(
    "options", [{"test_share": 0.9}, {"smallest": 8}, {"frames": 0}, {"clean_reduce": 0}, {"correlation_images": 0}]
)
def test_impossible_configuration_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="audit"):
        AuditConfig(**options)


def test_audit_is_plain_json(run: Run, tmp_path: Path) -> None:
    run()
    document = json.loads((tmp_path / "out" / AUDIT).read_text())
    assert set(document) == {"images", "clean", "refused", "sets", "warnings"}
    assert str(tmp_path) not in json.dumps(document)
