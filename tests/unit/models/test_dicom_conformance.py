"""dciodvfy, the validator of dicom3tools, finds no error in a derived object that its source had not."""

from __future__ import annotations

import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmwrite

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

VALIDATOR = "dciodvfy"
needs_validator = pytest.mark.skipif(
    shutil.which(VALIDATOR) is None, reason=f"{VALIDATOR} is not installed (Debian package dicom3tools)"
)
DERIVATIONS = (DENOISE, superresolve(2), superresolve(4))
LARGE = 2 * 1024**2  # bytes of pixels above which x4 adds only time

# The validator knows these attributes of an enhanced MR for originals and mixed images only. For the
# pulse sequence module C.8.13.4 allows them ("may be present") in derived images, so they are kept.
ENHANCED_MR_FALSE_ALARMS = {
    "BulkMotionCompensationTechnique",
    "CoverageOfKSpace",
    "EchoPlanarPulseSequence",
    "EchoPulseSequence",
    "GeometryOfKSpaceTraversal",
    "MRAcquisitionType",
    "MultiPlanarExcitation",
    "NumberOfKSpaceTrajectories",
    "OversamplingPhase",
    "PhaseContrast",
    "PulseSequenceName",
    "RectilinearPhaseEncodeReordering",
    "SaturationRecovery",
    "SegmentedKSpaceTraversal",
    "SpectrallySelectedSuppression",
    "SteadyStatePulseSequence",
    "TimeOfFlightContrast",
}


def errors_in(data: bytes, folder: Path) -> set[str]:
    """Error lines of the validator. An illegal UID counts once, wherever it is referred to."""
    path = folder / "object.dcm"
    path.write_bytes(data)
    run = subprocess.run([VALIDATOR, "-new", str(path)], capture_output=True, check=False)
    lines = (run.stdout + run.stderr).decode("latin-1").splitlines()
    errors = {line.strip() for line in lines if line.startswith("Error")}
    return {re.sub(r"</.*?> - (Illegal root for UID)", r"\1", error) for error in errors}


def is_false_alarm(error: str) -> bool:
    found = re.match(r"Error - </(\w+)\(.*may not be present otherwise", error)
    return bool(found) and found.group(1) in ENHANCED_MR_FALSE_ALARMS


def readable(data: bytes) -> bytes:
    """A deflated source as Explicit VR Little Endian, for the validator cannot inflate."""
    dataset = read(data)
    if not dataset.file_meta.TransferSyntaxUID.is_deflated:
        return data
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    stream = BytesIO()
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def derive(data: bytes, derivation: Derivation) -> bytes:
    image, scale = decode_dicom(data), derivation.scale
    padding = None if image.padding is None else image.padding.repeat(scale, 1).repeat(scale, 2)
    return encode_dicom(image.with_pixels(image.pixels.repeat(scale, 1).repeat(scale, 2), scale, padding), derivation)


def new_errors(data: bytes, folder: Path) -> dict[str, set[str]]:
    """Errors of the derived objects that the source has not, by operation and scale."""
    before = errors_in(readable(data), folder)
    large = decode_dicom(data).pixels.nbytes > LARGE
    found = {}
    for derivation in DERIVATIONS[: 2 if large else 3]:
        after = errors_in(derive(data, derivation), folder) - before
        found[f"{derivation.operation} x{derivation.scale}"] = {error for error in after if not is_false_alarm(error)}
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
    assert not new_errors(packaged(name), tmp_path)


@needs_validator
def test_an_enhanced_object_gains_no_error(tmp_path: Path) -> None:
    assert not new_errors(file_of(enhanced(ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])), tmp_path)


@needs_validator
@pytest.mark.shared
def test_shared_files_gain_no_error(shared: Path, tmp_path: Path) -> None:
    paths = [p for p in sorted((shared / "data" / "dicom").glob("*.dcm")) if p.name not in SHARED_REFUSED]
    assert len(paths) > 40
    found = {path.name: new_errors(path.read_bytes(), tmp_path) for path in paths}
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
