"""Routing and doors of a real server, with a real Orthanc, its hook, real senders, and the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient

from tests.dicom_objects import read
from tests.e2e.server import Server
from tests.fake_pacs import slices
from tests.orthanc import TestOrthanc

pytestmark = pytest.mark.shared
LIMIT_S = 60.0
TOKEN = "hook-token-for-this-test"
RULES = """
[[route]]
name = "chest"
when = {Modality = "CT", SeriesDescription = "chest*", min_instances = 3}
operation = "denoise"

[door]
pacs = "main"
[door.default]
operation = "denoise"
"""


class Site:
    """A server and its PACS."""

    def __init__(self, folder: Path, orthanc: TestOrthanc, repository: Path, **more: Any) -> None:
        peer = orthanc.peer()
        settings = {
            "access": "open",
            "jobs": "jobs",
            "job_free_bytes": 0,
            "pacs_rules": "rules.toml",
            "pacs_poll_s": 0.5,
            "webhook_token": TOKEN,
            "dimse_port": 0,
            "dimse_calling": ["SCANNER"],
        } | more
        assert peer.password is not None
        password = peer.password.get_secret_value()
        pacs = {"url": peer.url, "orthanc": peer.orthanc, "user": peer.user, "password": password}
        tables = [*settings.items()]
        lines = [f"{name} = {json.dumps(value)}" for name, value in tables]
        lines += ["[pacs.main]", *(f"{name} = {json.dumps(value)}" for name, value in pacs.items() if value)]
        (folder / "medrestore.toml").write_text("\n".join(lines))
        (folder / "rules.toml").write_text(RULES)
        self.folder, self.repository, self.orthanc = folder, repository, orthanc
        self.servers: list[Server] = []

    def start(self) -> Server:
        """A server that is ready and has begun to read the feed."""
        self.servers.append(Server(self.folder, "--repository", str(self.repository)))
        self.servers[-1].wait_ready()
        until(lambda: self.get("/pacs/status")["pacs"]["main"]["feed"]["read_s_ago"] is not None)
        return self.servers[-1]

    @property
    def url(self) -> str:
        return self.servers[-1].url

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, trust_env=False, timeout=60).raise_for_status().json()

    def decisions(self) -> dict[str, float]:
        """Series by what routing did with them."""
        text = httpx.get(self.url + "/metrics", trust_env=False, timeout=60).text
        lines = [line for line in text.splitlines() if line.startswith("medrestore_pacs_series_total{")]
        return {line.split('decision="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}

    def event(self, name: str) -> dict[str, Any]:
        """The first line of the log of that event."""
        lines = [json.loads(line) for line in self.servers[-1].log.read_text().splitlines() if line.startswith("{")]
        return next(line for line in lines if line["event"] == name)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "medrestore", "pacs", *words, "--url", self.url]
        return subprocess.run(program, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def until(wanted: Callable[[], object]) -> None:
    stop = time.monotonic() + LIMIT_S
    while not wanted():
        assert time.monotonic() < stop
        time.sleep(0.1)


@pytest.fixture
def site(orthanc: TestOrthanc, built_repository: Path, tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, orthanc, built_repository)
    yield site
    for server in site.servers:
        server.close()


def chest(count: int = 3, series: str = "1.2.3.100", **more: Any) -> list[bytes]:
    """A series that the rule takes."""
    attributes = {"Modality": "CT", "SeriesDescription": "Chest 1 mm", "StudyDate": f"{date.today():%Y%m%d}"} | more
    return slices(count, series, **attributes)


def derived(site: Site) -> list[pydicom.Dataset]:
    """Derived objects that Orthanc holds, in order."""
    found = [
        site.orthanc.http.get(f"/instances/{one}/file").content for one in site.orthanc.http.get("/instances").json()
    ]
    objects = [d for d in map(read, found) if d.ImageType[0] == "DERIVED"]
    return sorted(objects, key=lambda d: int(d.InstanceNumber))


def test_a_new_series_is_restored_without_any_call_and_what_we_made_is_not(site: Site) -> None:
    site.start()
    site.orthanc.upload(chest())
    site.orthanc.upload(slices(4, "1.2.3.101", Modality="CT", SeriesDescription="Head"))
    began = time.monotonic()
    until(lambda: len(derived(site)) == 3)
    print(f"stored {time.monotonic() - began:.1f} s after the upload, of which 1 s until stable")
    until(lambda: site.decisions() == {"taken": 1.0, "unmatched": 1.0, "ours": 1.0})
    made = derived(site)
    assert {d.SeriesDescription for d in made} == {"Chest 1 mm [denoise]"}
    assert len({d.SeriesInstanceUID for d in made}) == 1
    assert made[0].SeriesInstanceUID != "1.2.3.100"


def test_a_lost_webhook_and_a_stop_are_made_up_for(site: Site) -> None:
    server = site.start()
    assert server.stop(15, limit_s=60) == 0
    site.orthanc.upload(chest())
    time.sleep(3)  # stable while nobody listens
    site.start()
    until(lambda: len(derived(site)) == 3)


def test_the_hook_of_orthanc_wakes_a_service_that_looks_once_an_hour(
    start_orthanc: Callable[..., TestOrthanc], built_repository: Path, tmp_path: Path
) -> None:
    script = tmp_path / "hook.lua"
    script.write_text(
        "function OnStableSeries(id, tags, metadata)\n"
        f"  local file = io.open('{tmp_path}/hook.url')\n"
        f"  HttpPost(file:read('*l'), '{{}}', {{['Authorization'] = 'Bearer {TOKEN}'}})\n"
        "end\n"
    )
    orthanc = start_orthanc("--lua", str(script))
    site = Site(tmp_path, orthanc, built_repository, pacs_poll_s=3600)
    try:
        server = site.start()
        hook = f"{server.url}/pacs/events/orthanc"
        (tmp_path / "hook.url").write_text(hook)
        assert httpx.post(hook, trust_env=False).status_code == 401
        orthanc.upload(chest())
        until(lambda: len(derived(site)) == 3)
    finally:
        for each in site.servers:
            each.close()


def test_a_pacs_whose_database_began_anew_is_read_again(
    start_orthanc: Callable[..., TestOrthanc], built_repository: Path, tmp_path: Path
) -> None:
    orthanc = start_orthanc()
    site = Site(tmp_path, orthanc, built_repository)
    try:
        site.start()
        orthanc.upload(chest())
        until(lambda: len(derived(site)) == 3)
        orthanc.kill()
        for part in orthanc._folder.glob("storage/*"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        orthanc.start()
        orthanc.upload(chest(4, "1.2.3.102"))
        until(lambda: len(derived(site)) == 4)
        assert site.event("change feed began anew: all of it is read again")["pacs"] == "main"
    finally:
        for each in site.servers:
            each.close()


def test_series_are_found_without_a_feed_too(orthanc: TestOrthanc, built_repository: Path, tmp_path: Path) -> None:
    site = Site(tmp_path, orthanc, built_repository, pacs_stable_s=1.0)
    text = (tmp_path / "medrestore.toml").read_text()
    (tmp_path / "medrestore.toml").write_text("\n".join(x for x in text.splitlines() if not x.startswith("orthanc =")))
    try:
        site.start()
        orthanc.upload(chest())
        until(lambda: len(derived(site)) == 3)
        until(lambda: site.decisions().get("ours"))
    finally:
        for each in site.servers:
            each.close()


def test_an_independent_client_stores_through_the_door(site: Site) -> None:
    site.start()
    client = DICOMwebClient(site.url + "/dicomweb")
    answer = client.store_instances([read(data) for data in chest(5, "1.2.3.103", SeriesDescription="Any")])
    assert len(answer.ReferencedSOPSequence) == 5
    assert "FailedSOPSequence" not in answer
    until(lambda: len(derived(site)) == 5)
    assert len(site.orthanc.http.get("/instances").json()) == 5


@pytest.mark.skipif(not shutil.which("storescu"), reason="needs dcmtk")
def test_dcmtk_sends_by_c_store(site: Site, tmp_path: Path) -> None:
    site.start()
    files = []
    for index, data in enumerate(chest(3, "1.2.3.104", SeriesDescription="Any")):
        files.append(tmp_path / f"{index}.dcm")
        files[-1].write_bytes(data)
    port = site.event("listening for C-STORE")["port"]
    command = ["storescu", "-aet", "SCANNER", "-aec", "MEDRESTORE", "127.0.0.1", str(port), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    until(lambda: len(derived(site)) == 3)
    stranger = subprocess.run(["storescu", *command[3:]], capture_output=True, text=True, timeout=60, check=False)
    assert stranger.returncode != 0


def test_the_commands_tell_what_the_service_does(site: Site) -> None:
    site.start()
    done = site.command("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:2] == ["main", "yes"]

    site.orthanc.upload(chest(2))  # one too few for the rule
    until(lambda: site.decisions().get("unmatched"))
    done = site.command("route", "--dry-run")
    assert done.returncode == 0
    assert "chest: 2 of at least 3 instances" in done.stdout
    assert "0 of 1 series would be taken" in done.stderr

    wanted = ["--study", "1.2.3", "--series", "1.2.3.100", "--operation", "denoise", "--strength", "0.5"]
    done = site.command("submit", *wanted)
    assert done.returncode == 0, done.stderr
    watched = site.command("watch", done.stdout.split()[0])
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.splitlines()[-1].split()[1:] == ["completed", "2", "total,", "2", "verified"]
    assert len(derived(site)) == 2

    missing = site.command("submit", *wanted[:3], "1.2.3.999", *wanted[4:], "--watch")
    assert missing.returncode == 1
    assert "medrestore: " in missing.stderr


def test_the_commands_say_what_is_wrong(site: Site, tmp_path: Path) -> None:
    site.start()
    assert site.command("submit", "--study", "1.2").returncode == 2
    assert site.command("route").returncode == 2
    both = site.command("status", "--key", "a", "--key-file", str(tmp_path / "key"))
    assert (both.returncode, both.stderr) == (2, "medrestore: --key and --key-file exclude each other\n")
    absent = site.command("status", "--key-file", str(tmp_path / "key"))
    assert absent.returncode == 1
    assert "No such file" in absent.stderr
    unknown = site.command("watch", "0123")
    assert (unknown.returncode, unknown.stderr.startswith("medrestore: 404: ")) == (1, True)
    program = [sys.executable, "-m", "medrestore", "pacs", "status", "--url", "http://127.0.0.1:9"]
    down = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert down.returncode == 1
    assert "is the service running?" in down.stderr
