"""The README's examples, run as they stand against a real server."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file
from skimage import data

from tests.dicom_objects import enhanced, file_of
from tests.e2e.server import ROOT, Server, switch_jobs_on

ADDRESS = "http://127.0.0.1:8000"
EXAMPLES = re.findall(r"^```bash example\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
RNG = np.random.default_rng(11)


@pytest.fixture(scope="session", params=["tiny", "shipped"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The tests' tiny bundles always, the shipped ones where there are any."""
    if request.param == "shipped":
        yield request.getfixturevalue("shipped")
        return
    repository = request.getfixturevalue("built_repository")
    folder = tmp_path_factory.mktemp("tiny")
    switch_jobs_on(folder)
    tiny = Server(folder, "--repository", str(repository))
    tiny.wait_ready()
    yield tiny
    tiny.close()


@pytest.fixture(scope="session")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name, and after the first use what the examples made of them."""
    if not shutil.which("curl") or not shutil.which("bash"):
        pytest.skip("the examples need bash and curl")
    folder = tmp_path_factory.mktemp("readme")
    camera = data.camera()[100:356, 100:420]  # (256, 320) uint8
    noisy = camera / 255 + RNG.normal(0, 0.05, camera.shape)
    Image.fromarray(np.clip(noisy * 65535, 0, 65535).astype(np.uint16)).save(folder / "scan.png")
    tifffile.imwrite(folder / "scan.tiff", noisy.astype(np.float32))
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), folder / "ct.dcm")
    shutil.copy(get_testdata_file("examples_rgb_color.dcm", download=False), folder / "ultrasound.dcm")
    (folder / "series.dcm").write_bytes(file_of(enhanced(3, (2.0,) * 3)))
    for script in EXAMPLES:
        command = ["bash", "-euo", "pipefail", "-c", script.replace(ADDRESS, server.url)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{script}\n{done.stderr}\n{server.log.read_text()}"
    return folder


def test_there_are_six_examples_for_curl() -> None:
    assert len(EXAMPLES) == 6
    assert all(ADDRESS in script and "curl " in script for script in EXAMPLES)


def test_png_keeps_its_16_bits(folder: Path) -> None:
    before, after = (np.array(Image.open(folder / name)) for name in ("scan.png", "denoised.png"))
    assert after.dtype == np.uint16
    assert after.shape == before.shape
    assert len(np.unique(after)) > 1000
    assert np.abs(np.diff(after.astype(float))).mean() < np.abs(np.diff(before.astype(float))).mean()


def test_tiff_keeps_its_floats(folder: Path) -> None:
    before, after = (tifffile.imread(folder / name) for name in ("scan.tiff", "denoised.tiff"))
    assert after.dtype == np.float32
    assert after.shape == before.shape
    assert not np.array_equal(before, after)


def test_ct_comes_back_as_a_derived_ct_image(folder: Path) -> None:
    before, after = (pydicom.dcmread(folder / name) for name in ("ct.dcm", "denoised.dcm"))
    assert after.SOPClassUID == before.SOPClassUID
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert after.StudyInstanceUID == before.StudyInstanceUID
    assert after.ImageType[0] == "DERIVED"
    assert (after.RescaleSlope, after.RescaleIntercept) == (before.RescaleSlope, before.RescaleIntercept)
    assert after.pixel_array.shape == before.pixel_array.shape
    assert not np.array_equal(after.pixel_array, before.pixel_array)


def test_headers_name_the_model_and_the_noise(folder: Path) -> None:
    headers = (folder / "headers.txt").read_text().lower()
    for name in ("x-model", "x-precision", "x-request-id", "server-timing", "noise"):
        assert name in headers, headers


def test_ultrasound_is_twice_as_large_and_in_colour(folder: Path) -> None:
    before = pydicom.dcmread(folder / "ultrasound.dcm")
    after = np.array(Image.open(io.BytesIO((folder / "ultrasound_x2.png").read_bytes())))
    assert after.shape == (2 * before.Rows, 2 * before.Columns, 3)


def test_series_comes_back_whole_from_a_job(folder: Path) -> None:
    before, after = (pydicom.dcmread(folder / name) for name in ("series.dcm", "series_denoised.dcm"))
    assert after.NumberOfFrames == before.NumberOfFrames == 3
    assert json.loads((folder / "job.json").read_text())["frames"] == 3
    assert "event: done" in (folder / "events.txt").read_text()


def test_noise_report_is_json_in_hu(folder: Path) -> None:
    report = json.loads((folder / "noise.json").read_text())
    assert report["unit"] == "HU"
    assert report["level"] > 0
