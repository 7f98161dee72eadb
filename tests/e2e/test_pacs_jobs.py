"""PACS jobs of a real server with a real Orthanc, both of which are killed while they work.

MEDRESTORE_KILLS sets how often the service is killed at a random instance; 2 without it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.benchmarks.roundtrip import faults_of, fetch, series_files
from tests.dicom_objects import read
from tests.dicom_validator import needs
from tests.e2e.server import ROOT, Server, children, still_there
from tests.fake_pacs import slices
from tests.orthanc import TestOrthanc
from tests.pacs_service import ENDS
from tests.tiny_bundle import write_slow, write_tiny

LIMIT_S = 240.0
KILLS = int(os.environ.get("MEDRESTORE_KILLS", "2"))
STUDY, SERIES = "1.2.826.77", "1.2.826.77.1"


@pytest.fixture
def launch(tmp_path: Path, orthanc: TestOrthanc):
    """Starts servers one after the other on the same folders, of bundles and of jobs."""
    write_tiny(tmp_path / "bundles")
    write_slow(tmp_path / "bundles")
    servers: list[Server] = []

    def start(peer: TestOrthanc = orthanc) -> Server:
        state = peer.state
        (tmp_path / "password").write_text(state["password"])
        (tmp_path / "medrestore.toml").write_text(
            'jobs = "jobs"\njob_free_bytes = 0\nsuperresolve_x2_model = "slow"\ndenoise_model = "tiny"\n'
            f'[pacs.main]\nurl = "{state["dicomweb"]}"\nuser = "{state["user"]}"\npassword_file = "password"\n'
            "stow_items = 4\n"
        )
        servers.append(Server(tmp_path, "--repository", str(tmp_path / "bundles")))
        servers[-1].wait_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def call(server: Server, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except HTTPError as error:
        raise AssertionError(error.read()) from error


def submit(server: Server, operation: str = "denoise", study: str = STUDY, series: str = SERIES) -> str:
    more = {"scale": 2} if operation == "superresolve" else {}
    return str(call(server, "/pacs/jobs", {"study": study, "series": series, "operation": operation, **more})["id"])


def wait(server: Server, id: str, wanted: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
    stop = time.monotonic() + LIMIT_S
    while True:
        job = call(server, f"/pacs/jobs/{id}")
        if (wanted or (lambda job: job["state"] in ENDS))(job):
            return dict(job)
        assert time.monotonic() < stop, job
        assert wanted is None or job["state"] not in ENDS, job
        time.sleep(0.05)


def derived(orthanc: TestOrthanc, series: str) -> list[bytes]:
    """All instances that Orthanc holds of a series."""
    [found] = orthanc.find(series)
    ids = [one["ID"] for one in orthanc.http.get(f"/series/{found}/instances").json()]
    return [orthanc.http.get(f"/instances/{id}/file").content for id in ids]


def kill(server: Server) -> None:
    """SIGKILL, as from a power cut or the kernel; the workers follow by themselves."""
    workers = children(server.process.pid)
    server.process.kill()
    server.process.wait()
    assert still_there(workers, 20) == set()


@needs("dciodvfy", "dcentvfy")
@pytest.mark.parametrize("operation", ["denoise", "superresolve"])
def test_a_real_series_end_to_end(launch, orthanc: TestOrthanc, shared: Path, tmp_path: Path, operation: str) -> None:
    """Fetched by an independent client and judged by validators that are not ours."""
    sources = series_files(shared, 6)
    orthanc.upload(sources)
    first = read(sources[0])
    server = launch()
    job = wait(server, submit(server, operation, first.StudyInstanceUID, first.SeriesInstanceUID))
    assert job["state"] == "completed", job
    assert job["instances"]["verified"] == 6
    found = fetch(orthanc.state, first.StudyInstanceUID, job["derived_series"])
    scale = 2 if operation == "superresolve" else 1
    assert not list(faults_of(sources, found, scale, tmp_path))
    assert list(faults_of(sources, found[1:], scale, tmp_path))
    status = call(server, "/pacs/status")["pacs"]["main"]
    assert (status["reachable"], status["authorised"], status["jobs"]) == (True, True, {"completed": 1})


@pytest.mark.parametrize("turn", range(KILLS))
def test_case_11_a_service_killed_at_a_random_instance_loses_and_repeats_nothing(
    launch, orthanc: TestOrthanc, turn: int
) -> None:
    count = 24
    orthanc.upload(slices(count, SERIES, STUDY, side=64))
    server = launch()
    id = submit(server, "superresolve")
    at = random.Random(turn).randrange(count - 4)
    before = wait(server, id, lambda job: job["instances"]["total"] - job["instances"]["pending"] >= at)
    kill(server)
    server = launch()
    job = wait(server, id)
    assert job["state"] == "completed", job
    assert job["instances"]["verified"] == count
    found = [read(data) for data in derived(orthanc, job["derived_series"])]
    assert len(found) == count  # lost 0
    assert len({one.SOPInstanceUID for one in found}) == count
    sources = {one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in found}
    assert len(sources) == count  # repeated 0
    assert len({one.SeriesTime for one in found}) == 1
    assert before["derived_series"] == job["derived_series"]
    stored = sum(one["state"] == "verified" for one in call(server, f"/pacs/jobs/{id}/instances")["instances"])
    assert stored == count


def test_case_18_memory_does_not_grow_with_the_series(shared: Path) -> None:
    """In small; the benchmark's own figures are 2,000 slices."""
    command = [sys.executable, "-m", "tests.benchmarks.pacs", "--slices", "100", "--side", "128", "--growth", "150"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "above idle" in done.stdout


def test_case_4_a_pacs_killed_mid_response(launch, start_orthanc: Callable[..., TestOrthanc]) -> None:
    count = 24
    orthanc = start_orthanc()
    orthanc.upload(slices(count, SERIES, STUDY, side=512))
    server = launch(orthanc)
    id = submit(server, "superresolve")
    wait(server, id, lambda job: job["instances"]["total"] - job["instances"]["pending"] >= 4)
    orthanc.kill()
    job = wait(server, id, lambda job: job["state"] == "waiting")
    assert job["problem"]["type"].endswith("pacs-unavailable")
    orthanc.start()
    job = wait(server, id)
    assert (job["state"], job["instances"]["verified"]) == ("completed", count), job
    assert len({read(data).SOPInstanceUID for data in derived(orthanc, job["derived_series"])}) == count


def test_case_10_a_new_model_version_is_a_new_job_and_a_new_series(
    launch, orthanc: TestOrthanc, tmp_path: Path
) -> None:
    from tests.tiny_bundle import copy_bundle

    orthanc.upload(slices(3, SERIES, STUDY))
    server = launch()
    first = wait(server, submit(server))
    server.close()
    copy_bundle(tmp_path / "bundles", "tiny", "tiny", "2")
    server = launch()
    second = wait(server, submit(server))
    assert first["id"] != second["id"]
    assert first["derived_series"] != second["derived_series"]
    assert second["state"] == "completed"
    assert len(derived(orthanc, first["derived_series"])) == len(derived(orthanc, second["derived_series"])) == 3


def test_case_17_orthanc_keeps_the_first_of_two_objects_and_the_job_says_so(launch, orthanc: TestOrthanc) -> None:
    """The same series made elsewhere, with other pixels under the same UIDs."""
    from tests.dicom_objects import file_of

    orthanc.upload(slices(3, SERIES, STUDY))
    server = launch()
    first = wait(server, submit(server))
    made = derived(orthanc, first["derived_series"])
    orthanc.http.delete(f"/series/{orthanc.find(first['derived_series'])[0]}")
    for data in made:
        dataset = read(data)
        dataset.PixelData = bytes(len(dataset.PixelData))
        orthanc.upload([file_of(dataset)])
    server.close()
    (server.log.parent / "jobs" / "jobs.sqlite3").unlink()
    server = launch()
    job = wait(server, submit(server))
    assert job["state"] == "failed"
    assert job["problem"]["type"].endswith("pixels-differ")
