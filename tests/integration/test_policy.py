"""What the `dicom_` settings ask of derived objects holds for every way to one: calls, jobs, the command line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.local import Job, Restorer
from app.options import Options
from app.pipeline import EXACT, Evidence, derive
from app.settings import Settings
from models.bundle import find_bundle
from models.imaging.dicom import decode_dicom, derived_uid, is_ours
from tests.dicom_objects import read
from tests.integration.client import Client, dicom, serving

CHOICES: dict[str, Any] = {
    "dicom_image_type": "PRIMARY",
    "dicom_number_offset": 700,
    "dicom_qualification": "SERVICE",
    "dicom_private_creators": ["GEMS_PARM_01"],
}
SOURCE = dicom("CT_small.dcm")


@pytest.fixture(scope="module")
def site(built_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An application of a site that has decided otherwise."""
    folder = tmp_path_factory.mktemp("state") / "jobs"
    with serving(built_repository, jobs=folder, job_free_bytes=0, **CHOICES) as client:
        yield client


def check(data: bytes, usual: bytes | None = None) -> None:
    source, derived = read(SOURCE), read(data)
    assert list(derived.ImageType[:2]) == ["DERIVED", "PRIMARY"]
    assert derived.SeriesNumber == source.SeriesNumber + 700
    assert derived.ContentQualification == "SERVICE"
    creators = {element.value for element in derived if element.tag.is_private_creator}
    assert creators == {"GEMS_PARM_01"}
    assert is_ours(derived)
    if usual is not None:
        assert derived.SOPInstanceUID != read(usual).SOPInstanceUID


@pytest.mark.parametrize("url", ["/denoise", "/superresolve?scale=2"])
def test_a_call_follows_the_site(site: Client, client: Client, url: str) -> None:
    check(site.post(url, SOURCE).content, client.post(url, SOURCE).content)


def test_a_job_makes_the_object_of_a_call(site: Client) -> None:
    location = site.post("/jobs?task=denoise", SOURCE).headers["Location"]

    async def result() -> bytes:
        stop = time.monotonic() + 60
        while (await site.send("GET", location)).json()["state"] in ("queued", "running"):
            assert time.monotonic() < stop
            await asyncio.sleep(0.02)
        return (await site.send("GET", f"{location}/result")).content

    assert site.runner.run(result()) == site.post("/denoise", SOURCE).content


def test_the_command_line_makes_the_object_of_a_call(site: Client, built_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "in.dcm").write_bytes(SOURCE)
    settings = Settings(repository=built_repository, **CHOICES)
    bundle = find_bundle(built_repository, "tiny")
    restorer = Restorer(settings, bundle, Options())
    asyncio.run(restorer(Job(tmp_path / "in.dcm", tmp_path / "out.dcm")))
    made = (tmp_path / "out.dcm").read_bytes()
    check(made)
    assert read(made).SOPInstanceUID == read(site.post("/denoise", SOURCE).content).SOPInstanceUID


def test_the_uid_of_a_derived_object_is_known_before_it_is_made(site: Client) -> None:
    bundle = site.service.catalogue.lookup(None, "superresolve", 2)
    image, backend = decode_dicom(SOURCE), site.service.engine.config.backends[EXACT]
    tiles = site.service.tiling.mark(bundle, image, EXACT)
    derivation = derive(bundle, Options(), backend, EXACT, Evidence(image.values.unit), tiles)
    foretold = derived_uid(image.source.SOPInstanceUID, derivation, site.service.settings.policy)
    assert read(site.post("/superresolve?scale=2", SOURCE).content).SOPInstanceUID == foretold
