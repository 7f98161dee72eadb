"""Images that the pydicom package carries: clean enough to measure with, and present wherever DICOM is read."""

from __future__ import annotations

from pathlib import Path

from pydicom.data import get_testdata_file

SAMPLES = ("CT_small.dcm", "MR_small.dcm")


def read_samples() -> list[bytes]:
    """The files of `SAMPLES` that are there; nothing is downloaded."""
    paths = [get_testdata_file(name, download=False) for name in SAMPLES]
    return [Path(path).read_bytes() for path in paths if isinstance(path, str)]
