"""A real CT series from a real Orthanc, through the service, and back, looked at by those who did not make it:

    MEDRESTORE_SHARED=path python -m tests.benchmarks.roundtrip --picture slice.png [--slices 12] [--scale 2]

Starts an Orthanc and a service with the shipped bundles, uploads the series, asks with `medrestore pacs submit`, gets
the derived series with dicomweb-client, and has dciodvfy and dcentvfy judge it. The picture shows the middle slice
before and after, and what was removed. Exit status 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from app.settings import SHIPPED_BUNDLES
from models.errors import ImageError
from models.imaging.dicom import decode_dicom
from tests.benchmarks.derived import judge_geometry
from tests.dicom_objects import file_of, read
from tests.dicom_validator import complaints_about, errors_in, new_errors
from tests.e2e.server import ROOT, Server
from tests.orthanc import TestOrthanc

WINDOW_HU = (-160.0, 240.0)
REMOVED_HU = 60.0  # from black to grey, and from grey to white


def series_files(shared: Path, count: int) -> list[bytes]:
    """Slices of the shared CT series that can be decoded here, in the middle of it."""
    files = []
    for path in sorted((shared / "data" / "dicom_series" / "ct_lidc0314").glob("*.dcm")):
        try:
            decode_dicom(data := path.read_bytes())
        except ImageError:
            continue
        files.append(data)
    start = max(0, (len(files) - count) // 2)
    return files[start : start + count]


def fetch(state: Mapping[str, Any], study: str, series: str) -> list[bytes]:
    """A series as an independent client gets it."""
    from dicomweb_client.api import DICOMwebClient
    from dicomweb_client.session_utils import create_session_from_user_pass

    session = create_session_from_user_pass(state["user"], state["password"])
    client = DICOMwebClient(state["dicomweb"], session=session)
    kinds = (("application/dicom", "*"),)
    return [file_of(found) for found in client.retrieve_series(study, series, media_types=kinds)]


def faults_of(sources: Sequence[bytes], derived: Sequence[bytes], scale: int, folder: Path) -> Iterator[str]:
    """What is wrong with a derived series, in words."""
    before = {str(each.SOPInstanceUID): (data, each) for data, each in ((data, read(data)) for data in sources)}
    found = [(data, read(data)) for data in derived]
    if len(found) != len(sources):
        yield f"{len(found)} derived objects of {len(sources)}"
    if len({str(each.SOPInstanceUID) for _, each in found} - set(before)) != len(found):
        yield "UIDs are not new, or not different"
    for data, after in found:
        source = after.SourceImageSequence[0].ReferencedSOPInstanceUID
        if source not in before:
            yield "an object refers to no slice of the series"
            continue
        yield from _faults_of_one(*before[source], data, after, scale, folder)
    yield from _inconsistencies(sources, derived, folder)


def _faults_of_one(
    original: bytes, before: Dataset, data: bytes, after: Dataset, scale: int, folder: Path
) -> Iterator[str]:
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "FrameOfReferenceUID", "ImageOrientationPatient"):
        if after.get(keyword) != before.get(keyword):
            yield f"{keyword} has changed"
    if after.SeriesInstanceUID == before.SeriesInstanceUID or after.ImageType[0] != "DERIVED":
        yield "it does not say that it is derived"
    pixels, stored = decode_dicom(data).pixels, decode_dicom(original).pixels
    if pixels.shape[1:3] != (stored.shape[1] * scale, stored.shape[2] * scale):
        yield f"pixels of shape {pixels.shape}"
        return
    reduced = pixels[0, :, :, 0].reshape(stored.shape[1], scale, stored.shape[2], scale).mean((1, 3))
    moved = np.abs(reduced - stored[0, :, :, 0]).mean()
    if moved > 100 or (scale == 1 and not moved):
        yield f"pixels differ by {moved:.1f} in the mean"
    yield from judge_geometry(before, after, scale)
    yield from new_errors(errors_in(original, folder), errors_in(data, folder))


def _inconsistencies(sources: Sequence[bytes], derived: Sequence[bytes], folder: Path) -> Iterator[str]:
    """What dcentvfy says of source and derived series together, and not of the source alone."""
    paths = []
    for number, data in enumerate([*sources, *derived]):
        paths.append(folder / f"{number:04}.dcm")
        paths[-1].write_bytes(data)
    known = complaints_about(paths[: len(sources)])
    yield from (line for line in complaints_about(paths) - known if line.startswith("Error"))


def draw(before: bytes, after: bytes, scale: int, target: Path) -> None:
    """Before, after and removed, side by side, in the soft-tissue window."""
    planes = []
    for data in (before, after):
        image = decode_dicom(data)
        planes.append(image.pixels[0, :, :, 0] * image.values.slope + image.values.intercept)
    enlarged = planes[0].repeat(scale, 0).repeat(scale, 1)
    low, high = WINDOW_HU
    shown = [(plane - low) / (high - low) for plane in (enlarged, planes[1])]
    shown.append(0.5 + (enlarged - planes[1]) / (2 * REMOVED_HU))
    Image.fromarray(np.rint(np.clip(np.hstack(shown), 0, 1) * 255).astype(np.uint8)).save(target)


def submit(server: Server, before: Dataset, scale: int) -> tuple[str, dict[str, Any]]:
    """Has the command line ask and wait; its words, and the job's last document."""
    work = ["--operation", "denoise"] if scale == 1 else ["--operation", "superresolve", "--scale", str(scale)]
    series = ["--study", before.StudyInstanceUID, "--series", before.SeriesInstanceUID]
    command = [sys.executable, "-m", "medrestore", "pacs", "submit", *series, *work, "--url", server.url]
    told = subprocess.run([*command, "--watch"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    again = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return told, json.loads(again)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--scale", type=int, choices=(1, 2, 4), default=1, help="1 denoises")
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    shared = Path(os.environ["MEDRESTORE_SHARED"])
    sources = series_files(shared, options.slices)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        orthanc = TestOrthanc(shared, folder / "orthanc")
        server = None
        try:
            orthanc.upload(sources)
            state = orthanc.state
            (folder / "medrestore.toml").write_text(
                f'jobs = "jobs"\njob_free_bytes = 0\n[pacs.main]\nurl = "{state["dicomweb"]}"\n'
                f'user = "{state["user"]}"\npassword = "{state["password"]}"\n'
            )
            server = Server(folder, "--repository", str(SHIPPED_BUNDLES))
            server.wait_ready()
            start = time.perf_counter()
            told, job = submit(server, read(sources[0]), options.scale)
            print(told, f"{time.perf_counter() - start:.1f} s", sep="\n")
            derived = fetch(state, job["study"], job["derived_series"])
        finally:
            if server:
                server.close()
            orthanc.close()
        wrong = sorted(set(faults_of(sources, derived, options.scale, folder)))
    print(f"{len(derived)} derived objects of {len(sources)}; wrong: {len(wrong)}", *wrong, sep="\n")
    middle = sources[len(sources) // 2]
    uid = read(middle).SOPInstanceUID
    match = next(d for d in derived if read(d).SourceImageSequence[0].ReferencedSOPInstanceUID == uid)
    draw(middle, match, options.scale, options.picture)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
