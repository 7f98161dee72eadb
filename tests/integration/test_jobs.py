"""Jobs over the interface: what they give, what they refuse, and how they are watched and stopped."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.jobs.store import Job, Store
from models.bundle import promote
from models.imaging.codec import decode
from tests.dicom_objects import enhanced, file_of
from tests.integration.client import Client, changed, dicom, npy, problem, serving
from tests.tiny_bundle import copy_bundle, write_slow

END_S = 60.0


@pytest.fixture(scope="module")
def workshop(built_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An application that takes jobs."""
    with serving(built_repository, jobs=tmp_path_factory.mktemp("state") / "jobs", job_free_bytes=0) as client:
        yield client


@pytest.fixture(scope="module")
def multiframe() -> bytes:
    """An enhanced MR object of 12 frames."""
    return file_of(enhanced(12, (2.0,) * 12))


@pytest.fixture(scope="module")
def small() -> bytes:
    """The same of 2 frames."""
    return file_of(enhanced(2))


async def ended(client: Client, location: str) -> dict[str, Any]:
    """The job's last status."""
    stop = time.monotonic() + END_S
    while (job := (await client.send("GET", location)).json())["state"] in ("queued", "running"):
        assert time.monotonic() < stop, job
        await asyncio.sleep(0.02)
    return dict(job)


def work(client: Client, url: str, body: bytes, **options: Any) -> dict[str, Any]:
    """The last status of a new job."""
    response = client.post(url, body, **options)
    assert response.status_code == 202, response.text
    return client.runner.run(ended(client, response.headers["Location"]))


@pytest.mark.parametrize(
    ("options", "accept"),
    [
        ("denoise?", None),
        ("denoise?strength=0.7&sigma=30", None),
        ("denoise?", "application/x-npy"),
        ("denoise?", "image/tiff"),
        ("denoise?strength=0", None),
        ("superresolve?scale=2", None),
    ],
)
def test_result_is_what_the_synchronous_route_answers(
    workshop: Client, multiframe: bytes, options: str, accept: str | None
) -> None:
    direct = workshop.post(f"/{options}", multiframe, accept)
    task, _, query = options.partition("?")
    job = work(workshop, f"/jobs?task={task}&{query}", multiframe, accept=accept)
    assert (job["state"], job["frames_done"], job["frames"], job["progress"]) == ("done", 12, 12, 1.0)
    result = workshop.get(job["result"])
    assert result.content == direct.content
    kept = {name for name in direct.headers if name.startswith("x-") and not name.startswith(("x-request", "x-queue"))}
    assert {"x-model", "x-clip-count"} <= kept
    assert all(result.headers[name] == direct.headers[name] for name in kept)
    assert result.headers["Content-Type"] == direct.headers["Content-Type"]
    assert job["facts"]["model"] == direct.headers["X-Model"]


@pytest.mark.parametrize(
    "body",
    [
        dicom("SC_rgb_rle_2frame.dcm"),
        dicom("MR_small_RLE.dcm"),
        changed(dicom("CT_small.dcm"), PixelPaddingValue=-2000),
        dicom("image_dfl.dcm"),  # decoded whole
        npy(np.random.default_rng(3).normal(500, 40, (5, 24, 20)).astype(np.float32)),
        npy(np.random.default_rng(3).integers(0, 255, (20, 24, 3), np.uint8)),
    ],
)
def test_any_format_comes_out_as_from_the_synchronous_route(workshop: Client, body: bytes) -> None:
    direct = workshop.post("/denoise", body)
    job = work(workshop, "/jobs?task=denoise", body)
    assert workshop.get(job["result"]).content == direct.content


def test_form_upload_and_download_in_parts(workshop: Client, small: bytes) -> None:
    response = workshop.request("POST", "/v1/jobs?task=denoise", files={"file": ("a name.dcm", small)})
    assert response.headers["Location"].startswith("/v1/jobs/")
    job = workshop.runner.run(ended(workshop, response.headers["Location"]))
    whole = workshop.get(job["result"])
    digest = base64.b64encode(hashlib.sha256(whole.content).digest()).decode()
    assert whole.headers["Content-Digest"] == f"sha-256=:{digest}:"
    part = workshop.get(job["result"], headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert "Content-Digest" not in part.headers
    assert part.headers["Repr-Digest"] == whole.headers["Content-Digest"]


@pytest.mark.parametrize("asked", ["bytes=999999999-", "bytes=", "bytes=z-a", "bytes=9-3"])
def test_parts_that_there_are_not_are_refused(workshop: Client, small: bytes, asked: str) -> None:
    job = work(workshop, "/jobs?task=denoise", small)
    response = workshop.get(job["result"], headers={"Range": asked})
    assert (problem(response)["status"], problem(response)["type"]) == (416, "urn:medrestore:problem:range")
    assert response.headers["Content-Range"] == f"bytes */{len(workshop.get(job['result']).content)}"


def test_parts_in_another_unit_are_the_whole(workshop: Client, small: bytes) -> None:
    job = work(workshop, "/jobs?task=denoise", small)
    response, whole = workshop.get(job["result"], headers={"Range": "frames=0-0"}), workshop.get(job["result"])
    assert (response.status_code, response.content) == (200, whole.content)
    assert response.headers["Content-Digest"] == whole.headers["Content-Digest"]


def test_files_are_private_and_few(workshop: Client, small: bytes) -> None:
    job = work(workshop, "/jobs?task=denoise", small)
    folder = workshop.app.state.jobs.folder.of(job["id"])
    assert {path.name for path in folder.iterdir()} == {"outcome", "result"}
    for path in (folder.parent.parent, folder.parent, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = [path for path in folder.parent.parent.rglob("*") if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_nothing_of_the_patient_is_kept_beside_the_files(workshop: Client) -> None:
    named = file_of(enhanced(2, PatientName="Secret^Person", PatientID="secret-id"))
    response = workshop.request("POST", "/jobs?task=denoise", files={"file": ("Secret^Person.dcm", named)})
    workshop.runner.run(ended(workshop, response.headers["Location"]))
    root = workshop.app.state.jobs.folder.root
    stored = b"".join(path.read_bytes() for path in root.glob("jobs.sqlite3*"))
    listed = workshop.get("/jobs?limit=100").content + workshop.get("/metrics").content
    assert b"ecret" not in stored + listed


def test_events_tell_of_every_stage_and_end(workshop: Client, multiframe: bytes) -> None:
    async def follow() -> list[dict[str, Any]]:
        location = (await workshop.send("POST", "/jobs?task=denoise", content=multiframe)).headers["Location"]
        response = await workshop.send("GET", f"{location}/events")
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return events(response)

    told = workshop.runner.run(follow())
    assert told[-1]["event"] == told[-1]["data"]["state"] == "done"
    done = [event["data"]["frames_done"] for event in told]
    assert done == sorted(done)
    assert len(set(done)) > 3
    ids = [int(event["id"]) for event in told]
    assert ids == sorted(set(ids))
    path = told[-1]["data"]["events"]
    again = events(workshop.get(path, headers={"Last-Event-ID": "1"}))
    assert [event["data"] for event in again] == [told[-1]["data"]]
    assert workshop.get(path, headers={"Last-Event-ID": told[-1]["id"]}).status_code == 204


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Server-sent events, comments left out."""
    blocks = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
    found = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [{**event, "data": json.loads(event["data"])} for event in found]


def test_one_key_gives_one_job(workshop: Client, small: bytes) -> None:
    key = {"Idempotency-Key": "order 66"}
    first = work(workshop, "/jobs?task=denoise", small, headers=key)
    again = workshop.post("/jobs?task=denoise", small, headers=key)
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    other = workshop.post("/jobs?task=denoise&strength=0.5", small, headers=key)
    assert problem(other)["type"].endswith("invalid-option")


def test_two_uploads_at_once_under_one_key_give_one_job(workshop: Client, small: bytes) -> None:
    async def both() -> list[str]:
        key = {"Idempotency-Key": "twins"}
        sent = [workshop.send("POST", "/jobs?task=denoise", content=small, headers=key) for _ in range(2)]
        return [response.json()["id"] for response in await asyncio.gather(*sent)]

    ids = workshop.runner.run(both())
    assert len(set(ids)) == 1
    workshop.runner.run(ended(workshop, f"/jobs/{ids[0]}"))


def test_one_key_gives_one_job_though_another_version_has_become_the_default(
    repository: Path, tmp_path: Path, small: bytes
) -> None:
    copy_bundle(repository, "tiny", "tiny", "2")
    promote(repository, "tiny", "1")
    key = {"Idempotency-Key": "order 66"}
    with serving(repository, jobs=tmp_path / "jobs", job_free_bytes=0, repository_poll=0) as client:
        first = work(client, "/jobs?task=denoise", small, headers=key)
        promote(repository, "tiny", "2")
        client.service.catalogue.follow_pointer("tiny")
        again = client.post("/jobs?task=denoise", small, headers=key)
        assert (again.status_code, again.json()["id"]) == (202, first["id"])
        named = client.post("/jobs?task=denoise&model=tiny@1", small, headers=key)
        assert problem(named)["type"].endswith("invalid-option")
        assert work(client, "/jobs?task=denoise", small)["model"] == "tiny@2"


def test_uploads_of_unknown_length_are_promised_what_has_come(
    built_repository: Path, tmp_path: Path, small: bytes
) -> None:
    async def chunks(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    settings = {"job_disk_bytes": 1_000_000, "job_free_bytes": 0}  # less than one body may be
    with serving(built_repository, jobs=tmp_path / "jobs", **settings) as client:

        async def both() -> list[httpx.Response]:
            sent = [client.send("POST", "/jobs?task=denoise", content=chunks(small)) for _ in range(3)]
            return await asyncio.gather(*sent)

        for response in client.runner.run(both()):
            assert response.status_code == 202, response.text
            assert client.runner.run(ended(client, response.headers["Location"]))["state"] == "done"
        refused = client.request("POST", "/jobs?task=denoise", content=chunks(bytes(1_200_000)))
        assert problem(refused)["type"].endswith("disk-full")
        assert refused.headers["Connection"] == "close"
        assert client.service.settings.job_bytes > 1_200_000


def test_a_job_stands_though_its_caller_goes_while_it_is_noted(
    workshop: Client, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> dict[str, Any]:
        noting = asyncio.Event()
        loop, add = asyncio.get_running_loop(), Store.add

        def slow(store: Store, *values: Any) -> Job:
            loop.call_soon_threadsafe(noting.set)
            time.sleep(0.1)
            return add(store, *values)

        monkeypatch.setattr(Store, "add", slow)
        caller = asyncio.create_task(workshop.send("POST", "/jobs?task=denoise", content=small))
        await noting.wait()
        caller.cancel()
        await asyncio.wait({caller})
        assert caller.cancelled()
        newest = (await workshop.send("GET", "/jobs?limit=1")).json()["jobs"][0]
        return await ended(workshop, f"/jobs/{newest['id']}")

    before = {job["id"] for job in workshop.get("/jobs?limit=100").json()["jobs"]}
    job = workshop.runner.run(scenario())
    assert job["id"] not in before
    assert job["state"] == "done"


@pytest.mark.parametrize(
    ("url", "body", "accept", "slug"),
    [
        ("/jobs?task=denoise", b"no image at all", None, "unknown-format"),
        ("/jobs?task=denoise", b"", None, "invalid-body"),
        ("/jobs?task=denoise", dicom("rtdose.dcm"), None, "unsupported-image"),
        ("/jobs?task=denoise", dicom("MR_truncated.dcm"), None, "corrupt-image"),
        ("/jobs?task=denoise", npy(np.full((2, 8, 8), np.nan, np.float32)), None, "non-finite-pixels"),
        ("/jobs?task=denoise", npy(np.zeros((8, 8), np.float32)), "image/png", "not-acceptable"),
        ("/jobs?task=denoise", npy(np.zeros((8, 8), np.float32)), "text/html", "not-acceptable"),
        ("/jobs?task=denoise&model=nobody", b"", None, "model-not-found"),
        ("/jobs?task=denoise&model=tiny-x2", b"", None, "invalid-option"),
        ("/jobs?task=denoise&scale=2", b"", None, "invalid-option"),
        ("/jobs?task=superresolve", b"", None, "invalid-option"),
        ("/jobs?task=superresolve&scale=2&sigma=3", b"", None, "invalid-option"),
        ("/jobs?task=denoise&task=denoise", b"", None, "invalid-option"),
        ("/jobs?task=analyze", b"", None, "invalid-option"),
    ],
)
def test_what_can_be_told_early_is_refused_at_once(
    workshop: Client, url: str, body: bytes, accept: str | None, slug: str
) -> None:
    before = len(list(workshop.app.state.jobs.folder.root.glob("files/*")))
    assert problem(workshop.post(url, body, accept))["type"] == f"urn:medrestore:problem:{slug}"
    assert len(list(workshop.app.state.jobs.folder.root.glob("files/*"))) == before


def test_damage_inside_fails_the_job_with_the_problem_of_the_synchronous_route(workshop: Client) -> None:
    body = bytearray(dicom("examples_ybr_color.dcm"))
    start = body.find(b"\xfe\xff\x00\xe0", len(body) // 2) + 8  # an RLE frame's header
    body[start : start + 64] = b"\xff" * 64
    direct = problem(workshop.post("/denoise", bytes(body)))
    job = work(workshop, "/jobs?task=denoise", bytes(body))
    assert job["state"] == "failed"
    assert {name: job["problem"][name] for name in ("type", "title", "status", "detail")} == {
        name: direct[name] for name in ("type", "title", "status", "detail")
    }
    refused = problem(workshop.get(f"/jobs/{job['id']}/result"))
    assert (refused["status"], refused["reason"]) == (409, "failed")


def test_a_deleted_job_is_forgotten(workshop: Client, small: bytes) -> None:
    job = work(workshop, "/jobs?task=denoise", small)
    path = f"/jobs/{job['id']}"
    assert workshop.request("DELETE", path).status_code == 204
    assert problem(workshop.get(path))["status"] == 404
    assert problem(workshop.get(f"{path}/events"))["status"] == 404
    assert problem(workshop.get(f"{path}/result"))["status"] == 404
    assert problem(workshop.request("DELETE", path))["status"] == 404
    assert not workshop.app.state.jobs.folder.of(job["id"]).exists()


def test_newest_jobs_are_listed_first(workshop: Client, small: bytes) -> None:
    made = [work(workshop, "/jobs?task=denoise", small)["id"] for _ in range(2)]
    assert [job["id"] for job in workshop.get("/jobs?limit=2").json()["jobs"]] == made[::-1]
    assert problem(workshop.get("/jobs?limit=101"))["status"] == 422


def test_metrics_count_jobs(workshop: Client, small: bytes) -> None:
    work(workshop, "/jobs?task=denoise", small)
    text = workshop.get("/metrics").text
    assert 'medrestore_jobs{state="done"}' in text
    assert 'medrestore_job_duration_seconds_count{kind="restore",state="done"}' in text


def test_without_a_folder_there_are_no_jobs(client: Client, multiframe: bytes) -> None:
    for response in (client.post("/jobs?task=denoise", multiframe), client.get("/jobs"), client.get("/jobs/1")):
        assert problem(response)["type"].endswith("jobs-unavailable")
        assert "set `jobs`" in problem(response)["detail"]
        assert "Retry-After" not in response.headers


def test_a_folder_that_cannot_be_used_costs_nothing_but_the_jobs(
    built_repository: Path, tmp_path: Path, picture: bytes
) -> None:
    (tmp_path / "jobs").write_text("a file")
    with serving(built_repository, jobs=tmp_path / "jobs") as client:
        assert problem(client.get("/jobs"))["type"].endswith("jobs-unavailable")
        assert client.post("/denoise", picture).status_code == 200


def test_a_database_that_cannot_be_read_costs_nothing_but_the_jobs(
    built_repository: Path, tmp_path: Path, picture: bytes, small: bytes
) -> None:
    path = tmp_path / "jobs" / "jobs.sqlite3"

    def unavailable(client: Client) -> None:
        for response in (client.get("/jobs"), client.post("/jobs?task=denoise", small)):
            assert (response.status_code, problem(response)["type"][-16:]) == (503, "jobs-unavailable")
        assert client.post("/denoise", picture).status_code == 200

    with serving(built_repository, jobs=tmp_path / "jobs", job_free_bytes=0) as client:
        assert work(client, "/jobs?task=denoise", small)["state"] == "done"
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE job")
        connection.close()
        unavailable(client)
        assert list(tmp_path.glob("jobs/files/*/input")) == []
    with serving(built_repository, jobs=tmp_path / "jobs", job_free_bytes=0) as client:
        unavailable(client)


@pytest.mark.parametrize(
    ("settings", "slug", "code"),
    [
        ({"job_bytes": 1000}, "too-large", 413),
        ({"job_frames": 3}, "too-large", 413),
        ({"job_pixels": 100}, "too-large", 413),
        ({"limit_pixels": 40}, "too-large", 413),
        ({"job_disk_bytes": 1000}, "too-large", 413),
        ({"job_free_bytes": 2**60}, "disk-full", 507),
    ],
)
def test_limits(
    built_repository: Path, tmp_path: Path, multiframe: bytes, settings: dict[str, int], slug: str, code: int
) -> None:
    with serving(built_repository, jobs=tmp_path / "jobs", **({"job_free_bytes": 0} | settings)) as client:
        answer = problem(client.post("/jobs?task=denoise", multiframe))
        assert (answer["type"], answer["status"]) == (f"urn:medrestore:problem:{slug}", code)
        assert list(client.app.state.jobs.folder.root.glob("files/*")) == []


def test_a_job_that_never_has_room_for_its_result_is_refused_at_once(built_repository: Path, tmp_path: Path) -> None:
    with serving(built_repository, jobs=tmp_path / "jobs", job_disk_bytes=1_000_000, job_free_bytes=0) as client:
        stack = np.random.default_rng(3).normal(500, 40, (10, 100, 100)).astype(np.float32)
        refused = problem(client.post("/jobs?task=denoise", npy(stack)))  # 0.4 MB, its frames and its result as much
        assert (refused["status"], refused["type"]) == (413, "urn:medrestore:problem:too-large")
        assert "job_disk_bytes" in refused["detail"]
        assert problem(client.post("/jobs?task=superresolve&scale=2", npy(stack[:4])))["status"] == 413
        assert work(client, "/jobs?task=denoise", npy(stack[:4]))["state"] == "done"


def slow(frames: int) -> bytes:
    """A stack that the slow bundle takes about a second a frame for."""
    return npy(np.full((frames, 8, 8), 1.0, np.float32))


@pytest.fixture
def slow_workshop(tmp_path: Path) -> Iterator[Client]:
    write_slow(tmp_path / "bundles")
    settings = {"jobs": tmp_path / "jobs", "job_free_bytes": 0, "job_count": 2, "superresolve_x2_model": "slow"}
    with serving(tmp_path / "bundles", **settings) as client:
        yield client


def test_a_running_job_is_cancelled_and_the_next_one_runs(slow_workshop: Client) -> None:
    async def scenario() -> tuple[dict[str, Any], list[str], int]:
        send = slow_workshop.send
        url = "/jobs?task=superresolve&scale=2"
        first, second = [(await send("POST", url, content=slow(50))).headers["Location"] for _ in range(2)]
        full = await send("POST", url, content=slow(50))
        assert (full.status_code, full.json()["type"]) == (429, "urn:medrestore:problem:queue-full")
        while (await send("GET", first)).json()["state"] != "running":
            await asyncio.sleep(0.02)
        unfinished = await send("GET", f"{first}/result")
        assert (unfinished.status_code, unfinished.json()["reason"]) == (409, "running")
        assert "Retry-After" in unfinished.headers
        assert (await send("DELETE", first)).status_code == 204
        cancelled = (await send("GET", first)).json()
        while (await send("GET", second)).json()["state"] != "running":
            await asyncio.sleep(0.02)
        assert (await send("DELETE", second)).status_code == 204
        files = [path.name for path in slow_workshop.app.state.jobs.folder.root.glob("files/*")]
        return cancelled, files, slow_workshop.service.engine.queued_items

    cancelled, files, queued = slow_workshop.runner.run(scenario())
    assert cancelled["state"] == "cancelled"
    assert (files, queued) == ([], 0)


def test_an_interactive_request_overtakes_a_job(slow_workshop: Client) -> None:
    """The slow job has many tiles to go when the request comes, and is still not done when it is answered."""

    async def scenario() -> tuple[int, dict[str, Any]]:
        send = slow_workshop.send
        job = (await send("POST", "/jobs?task=superresolve&scale=2", content=slow(30))).headers["Location"]
        while (await send("GET", job)).json()["state"] != "running":
            await asyncio.sleep(0.02)
        answer = await send("POST", "/superresolve?scale=2", content=npy(np.zeros((8, 8), np.float32)))
        after = (await send("GET", job)).json()
        await send("DELETE", job)
        return answer.status_code, after

    status, job = slow_workshop.runner.run(scenario())
    assert status == 200
    assert job["state"] == "running"


def test_a_stop_puts_the_job_back_and_the_next_service_ends_it(
    built_repository: Path, tmp_path: Path, multiframe: bytes
) -> None:
    settings = {"jobs": tmp_path / "jobs", "job_free_bytes": 0}
    with serving(built_repository, **settings) as client:
        whole = client.post("/denoise", multiframe).content
        locations = [client.post("/jobs?task=denoise", multiframe).headers["Location"] for _ in range(3)]
    with serving(built_repository, **settings) as client:
        for location in locations:
            job = client.runner.run(ended(client, location))
            assert job["state"] == "done"
            assert client.get(job["result"]).content == whole
        assert decode(whole).frames == 12
