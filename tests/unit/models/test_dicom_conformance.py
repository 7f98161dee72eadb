"""dciodvfy, the validator of dicom3tools, finds no error in a derived object that its source had not."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import ImageError
from models.imaging.dicom import decode_dicom, encode_dicom
from models.imaging.image import Derivation
from tests.dicom_objects import (
    DENOISE,
    SHARED_REFUSED,
    enhanced,
    file_of,
    packaged,
    packaged_in_scope,
    read,
    superresolve,
)
from tests.dicom_validator import errors_in, needs, new_errors

needs_validator = needs("dciodvfy")
DERIVATIONS = (DENOISE, superresolve(2), superresolve(4))
LARGE = 2 * 1024**2  # bytes of pixels above which x4 adds only time


def derive(data: bytes, derivation: Derivation) -> bytes:
    image, scale = decode_dicom(data), derivation.scale
    padding = None if image.padding is None else image.padding.repeat(scale, 1).repeat(scale, 2)
    return encode_dicom(image.with_pixels(image.pixels.repeat(scale, 1).repeat(scale, 2), scale, padding), derivation)


def gained(data: bytes, folder: Path) -> dict[str, set[str]]:
    """Errors of the derived objects that the source has not, by operation and scale."""
    before = errors_in(data, folder)
    large = decode_dicom(data).pixels.nbytes > LARGE
    found = {
        f"{derivation.operation} x{derivation.scale}": new_errors(before, errors_in(derive(data, derivation), folder))
        for derivation in DERIVATIONS[: 2 if large else 3]
    }
    return {name: errors for name, errors in found.items() if errors}


@needs_validator
def test_the_validator_is_listening(tmp_path: Path) -> None:
    """It is silent about a file that it cannot read: make sure that it finds what is wrong."""
    dataset = read(packaged("CT_small.dcm"))
    del dataset.Rows
    assert any("Rows" in error for error in errors_in(file_of(dataset), tmp_path))


@needs_validator
@pytest.mark.parametrize("name", packaged_in_scope())
def test_packaged_files_gain_no_error(name: str, tmp_path: Path) -> None:
    assert not gained(packaged(name), tmp_path)


@needs_validator
def test_an_enhanced_object_gains_no_error(tmp_path: Path) -> None:
    assert not gained(file_of(enhanced(ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])), tmp_path)


@needs_validator
@pytest.mark.shared
def test_shared_files_gain_no_error(shared: Path, tmp_path: Path) -> None:
    paths = [p for p in sorted((shared / "data" / "dicom").glob("*.dcm")) if p.name not in SHARED_REFUSED]
    assert len(paths) > 40
    found = {path.name: gained(path.read_bytes(), tmp_path) for path in paths}
    assert not {name: errors for name, errors in found.items() if errors}


@pytest.mark.shared
def test_a_real_series_stays_one_series(shared: Path) -> None:
    uids = set()
    for path in sorted((shared / "data" / "dicom_series" / "ct_lidc0314").iterdir()):
        try:
            data = path.read_bytes()
            derived = read(derive(data, DENOISE))
        except (IsADirectoryError, ImageError):
            continue
        source = read(data)
        uids.add((source.SeriesInstanceUID, derived.SeriesInstanceUID))
        assert derived.StudyInstanceUID == source.StudyInstanceUID
        assert derived.PatientID == source.PatientID
        assert derived.ImagePositionPatient == source.ImagePositionPatient
    assert len(uids) == 1
