"""Readers and validators that are not ours: dcmdump of DCMTK, dciodvfy and dcentvfy of dicom3tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmwrite

from tests.dicom_objects import read

PACKAGES = {"dciodvfy": "dicom3tools", "dcentvfy": "dicom3tools", "dcmdump": "dcmtk"}  # command -> Debian package

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


def needs(*commands: str) -> pytest.MarkDecorator:
    """Skips a test, and says why, where a command is not installed."""
    absent = [f"{name} (Debian package {PACKAGES[name]})" for name in commands if shutil.which(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def errors_in(data: bytes, folder: Path) -> set[str]:
    """Error lines of dciodvfy. An illegal UID counts once, wherever it is referred to."""
    path = folder / "object.dcm"
    path.write_bytes(_inflated(data))
    errors = {line for line in _lines("dciodvfy", "-new", str(path)) if line.startswith("Error")}
    return {re.sub(r"</.*?> - (Illegal root for UID)", r"\1", error) for error in errors}


def new_errors(source: set[str], derived: set[str]) -> set[str]:
    """What the derived object is blamed for and its source was not, without the false alarms."""
    return {error for error in derived - source if not _is_false_alarm(error)}


def complaints_about(paths: Sequence[Path]) -> set[str]:
    """What dcentvfy says of files that tell of the same patients, studies and series; file names left out."""
    lines = _lines("dcentvfy", *map(str, paths))
    return {re.sub(r"\S*/\S+\.dcm", "FILE", line) for line in lines}


def native_bytes_of(path: Path, folder: Path) -> bytes:
    """The pixel data of an uncompressed file as dcmdump writes them. Raises CalledProcessError."""
    run = subprocess.run(["dcmdump", "-q", "+W", str(folder), str(path)], capture_output=True, check=True)
    assert run.stdout
    (raw,) = folder.glob("*.raw")
    data = raw.read_bytes()
    raw.unlink()
    return data


def _is_false_alarm(error: str) -> bool:
    found = re.match(r"Error - </(\w+)\(.*may not be present otherwise", error)
    return bool(found) and found.group(1) in ENHANCED_MR_FALSE_ALARMS


def _lines(*command: str) -> list[str]:
    run = subprocess.run(command, capture_output=True, check=False)
    return [line.strip() for line in (run.stdout + run.stderr).decode("latin-1").splitlines()]


def _inflated(data: bytes) -> bytes:
    """A deflated source as Explicit VR Little Endian, for dicom3tools cannot inflate."""
    if b"1.2.840.10008.1.2.1.99" not in data[:1000]:
        return data
    dataset = read(data)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    stream = BytesIO()
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    return stream.getvalue()
