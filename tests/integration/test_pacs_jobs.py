"""PACS jobs against a scripted PACS. Numbers of failure cases are those of the integration's own list of 22."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.jobs.folder import JobFolder
from models.imaging.dicom import decode_dicom
from tests.dicom_objects import enhanced, file_of, read
from tests.fake_pacs import FakePacs, slices
from tests.integration.client import Client, problem
from tests.pacs_service import order, outcomes, pacs_service, submit, wait


def test_a_series_is_restored_and_stored(service: Client, pacs: FakePacs, series: str) -> None:
    response = service.request("POST", "/v1/pacs/jobs", json=order(series, options={"strength": 0.5}))
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/pacs/jobs/{response.json()['id']}"
    job = wait(service, response.json()["id"])
    assert job["state"] == "completed", job
    assert job["instances"] == {
        "total": 6, "pending": 0, "stored": 0, "verified": 6, "skipped": 0, "failed": 0, "gone": 0,
    }  # fmt: skip
    made = pacs.series(job["derived_series"])
    assert len(made) == 6
    listed = service.get(f"/pacs/jobs/{job['id']}/instances").json()["instances"]
    for one in listed:
        before, after = read(pacs.objects[one["source"]].data), read(made[one["derived"]].data)
        assert (after.StudyInstanceUID, after.PatientID) == (before.StudyInstanceUID, before.PatientID)
        assert after.InstanceNumber == before.InstanceNumber
        assert after.InstanceCreationDate == after.SeriesDate
        direct = service.post("/denoise?strength=0.5", pacs.objects[one["source"]].data)
        assert np.array_equal(decode_dicom(made[one["derived"]].data).pixels, decode_dicom(direct.content).pixels)
    assert len({read(held.data).SeriesTime for held in made.values()}) == 1


def test_super_resolution_has_its_own_series(service: Client, pacs: FakePacs, series: str) -> None:
    job = wait(service, submit(service, series, operation="superresolve", scale=2)["id"])
    assert job["state"] == "completed", job
    assert {held.rows for held in pacs.series(job["derived_series"]).values()} == {64}


def test_case_9_the_same_request_is_the_same_job_also_at_once(service: Client, pacs: FakePacs, series: str) -> None:
    async def post_all() -> list[httpx.Response]:
        calls = [service.send("POST", "/pacs/jobs", json=order(series)) for _ in range(8)]
        return await asyncio.gather(*calls)

    answers = service.runner.run(post_all())
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [202]
    job = wait(service, answers[0].json()["id"])
    derived = set(pacs.series(job["derived_series"]))
    assert sorted(uid for uid in pacs.stored if uid in derived) == sorted(derived)


def test_case_13_slices_that_come_later_are_added_alone(service: Client, pacs: FakePacs, series: str) -> None:
    first = wait(service, submit(service, series)["id"])
    for data in slices(9, series)[6:]:
        pacs.add(data)
    before = len(pacs.stored)
    again = submit(service, series, status=200)
    assert again["id"] == first["id"]
    job = wait(service, first["id"], lambda job: job["instances"]["verified"] == 9 and job["state"] == "completed")
    assert job["derived_series"] == first["derived_series"]
    assert len(pacs.stored) - before == 3
    assert len({read(held.data).SeriesTime for held in pacs.series(job["derived_series"]).values()}) == 1


def test_case_13_slices_that_come_while_it_runs_are_done_too(service: Client, pacs: FakePacs, series: str) -> None:
    def grow(verb: str, request: httpx.Request) -> None:
        if verb == "stow":
            for data in slices(8, series)[6:]:
                pacs.add(data)

    with pacs.rule(grow):
        job = wait(service, submit(service, series)["id"])
    assert (job["state"], job["instances"]["verified"]) == ("completed", 8)


def test_case_19_a_mixed_series(service: Client, pacs: FakePacs) -> None:
    study, uid = "1.2.7", "1.2.7.1"
    image, other = slices(2, uid, study)
    localizer = slices(3, uid, study, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[2]
    large = slices(4, uid, study, side=48)[3]
    screen = slices(5, uid, study, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")[4]
    report = slices(6, uid, study, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")[5]
    palette = slices(7, uid, study, PhotometricInterpretation="PALETTE COLOR")[6]
    cut = slices(8, uid, study, Rows=64)[7]  # more rows than there are pixels
    for data in (image, other, localizer, large, screen, report, palette, cut):
        pacs.add(data)
    job = wait(service, submit(service, uid, study=study)["id"])
    assert job["state"] == "completed_with_gaps"
    assert outcomes(service, job["id"]) == {
        f"{uid}.1": ("verified", None),
        f"{uid}.2": ("verified", None),
        f"{uid}.3": ("skipped", "localizer"),
        f"{uid}.4": ("verified", None),
        f"{uid}.5": ("skipped", "screen"),
        f"{uid}.6": ("skipped", "report"),
        f"{uid}.7": ("failed", "palette"),
        f"{uid}.8": ("failed", "truncated"),
    }
    assert len(pacs.series(job["derived_series"])) == 3


def test_an_instance_over_the_limits_costs_the_others_no_room(service: Client, pacs: FakePacs, series: str) -> None:
    """By what the PACS lists: it would be refused once it came, and none would come while its room was waited for."""

    def listed(verb: str, request: httpx.Request) -> httpx.Response | None:
        if verb != "qido" or not request.url.path.endswith("/instances"):
            return None
        rows = json.loads(pacs.listed(request).content)
        if rows and rows[0]["00080018"]["Value"][0].startswith(f"{series}."):
            rows[0] |= {tag: {"vr": "US", "Value": [60000]} for tag in ("00280008", "00280010", "00280011")}
        return httpx.Response(200, content=json.dumps(rows))

    with pacs.rule(listed):
        job = wait(service, submit(service, series)["id"])
    assert (job["state"], job["instances"]["verified"]) == ("completed_with_gaps", 5), job
    assert sorted(outcomes(service, job["id"]).values())[0] == ("failed", "too_large")


def test_case_14_what_we_made_is_not_restored_again(service: Client, pacs: FakePacs, series: str) -> None:
    first = wait(service, submit(service, series)["id"])
    job = wait(service, submit(service, first["derived_series"])["id"])
    assert (job["state"], job["instances"]["skipped"]) == ("completed", 6)
    assert set(outcomes(service, job["id"]).values()) == {("skipped", "ours")}


def test_a_multi_frame_object_is_worked_frame_by_frame(service: Client, pacs: FakePacs) -> None:
    study, uid = "1.2.6", "1.2.6.1"
    identity = {"StudyInstanceUID": study, "SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.1"}
    source = file_of(enhanced(5, (2.0,) * 5, **identity))
    pacs.add(source)
    job = wait(service, submit(service, uid, study=study)["id"])
    assert job["state"] == "completed", job
    [made] = pacs.series(job["derived_series"]).values()
    direct = service.post("/denoise", source)
    assert np.array_equal(decode_dicom(made.data).pixels, decode_dicom(direct.content).pixels)
    assert read(made.data).SOPInstanceUID == read(direct.content).SOPInstanceUID


def test_nothing_is_left_in_the_spool(service: Client, series: str) -> None:
    job = wait(service, submit(service, series)["id"])
    assert not service.app.state.jobs.folder.of(job["id"]).exists()


def test_status_tells_what_is_out_of_order(built_repository: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"pacs_rules": tmp_path / "none.toml", "dimse_port": 0}
    held = JobFolder(tmp_path / "jobs", 10**9, 0)
    held.open()
    with pacs_service(FakePacs(), built_repository, tmp_path / "jobs", **settings) as client:
        status = client.get("/pacs/status").json()
    held.close()
    assert status["pacs"]["main"]["authorised"] is True
    for what in ("jobs", "rules", "dimse"):
        assert "another service works on the folder of jobs" in status[f"{what}_problem"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b" " * 70_000, 413),
        (b"[" * 60_000, 400),
        (b'{"study": "\xff"}', 400),
        (b'{"study": ', 422),
        (b"", 422),
    ],
)
def test_a_body_that_is_no_order_is_refused(service: Client, body: bytes, status: int) -> None:
    for path in ("/pacs/jobs", "/v1/pacs/jobs"):
        refused = service.post(path, body, headers={"Content-Type": "application/json"})
        assert problem(refused)["status"] == status
        assert "at this path" not in refused.text


@pytest.mark.parametrize("endless", [True, False])
def test_a_body_without_an_end_is_given_up(built_repository: Path, tmp_path: Path, endless: bool) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        while endless:
            yield b" " * 4096
        await asyncio.sleep(60)

    with pacs_service(FakePacs(), built_repository, tmp_path / "jobs", stall_s=0.1) as client:
        response = client.request("POST", "/pacs/jobs", content=body(), headers={"Content-Type": "application/json"})
    assert problem(response)["status"] == (413 if endless else 408)


def test_a_series_that_is_not_there_fails(service: Client) -> None:
    job = wait(service, submit(service, "1.2.3.99")["id"])
    assert (job["state"], job["problem"]["type"].rpartition(":")[2]) == ("failed", "pacs-gone")


def test_events_tell_every_phase(service: Client, series: str) -> None:
    id = submit(service, series)["id"]
    text = service.get(f"/pacs/jobs/{id}/events").text
    events = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("event: ")]
    assert events[-1] == "completed"
    assert {"listing", "running", "verifying"} & set(events)
    last = json.loads([line for line in text.splitlines() if line.startswith("data: ")][-1].partition(": ")[2])
    assert last["instances"]["verified"] == 6


def test_a_cancelled_job_stays_so_until_retry(service: Client, pacs: FakePacs, series: str) -> None:
    gate = asyncio.Event()

    def down(verb: str, request: httpx.Request) -> None:
        if not gate.is_set():
            raise httpx.ConnectError("refused")

    with pacs.rule(down):
        id = submit(service, series)["id"]
        wait(service, id, "waiting")
        assert service.request("POST", f"/pacs/jobs/{id}/cancel").json()["state"] == "cancelled"
        gate.set()
        assert submit(service, series, status=200)["state"] == "cancelled"
        assert service.request("POST", f"/pacs/jobs/{id}/retry").status_code == 200
        assert wait(service, id)["state"] == "completed"


def test_jobs_are_listed_by_state_and_study_page_by_page(service: Client, pacs: FakePacs) -> None:
    study = "1.2.9"
    for number in range(3):
        for data in slices(1, f"{study}.{number}", study):
            pacs.add(data)
        wait(service, submit(service, f"{study}.{number}", study=study)["id"])
    first = service.get(f"/pacs/jobs?study={study}&limit=2").json()
    rest = service.get("/pacs/jobs", params={"study": study, "limit": 2, "cursor": first["next"]}).json()
    assert [job["series"] for job in first["jobs"] + rest["jobs"]] == [f"{study}.{n}" for n in (2, 1, 0)]
    assert rest["next"] is None
    assert service.get(f"/pacs/jobs?study={study}&state=failed").json()["jobs"] == []
    assert len(service.get(f"/pacs/jobs?study={study}&state=completed").json()["jobs"]) == 3


@pytest.mark.parametrize(
    "body",
    [
        order("not a uid"),
        order("1.2", operation="sharpen"),
        order("1.2", scale=2),
        order("1.2", operation="superresolve"),
        order("1.2", operation="superresolve", scale=2, options={"strength": 1}),
        order("1.2", options={"strength": 3}),
        order("1.2", pacs="other"),
        order("1.2", url="http://elsewhere"),
        {"study": "1.2"},
    ],
)
def test_bad_requests_are_refused(service: Client, body: dict[str, Any]) -> None:
    assert problem(service.request("POST", "/pacs/jobs", json=body))["status"] == 422


def test_unknown_models_jobs_and_cursors_are_refused(service: Client) -> None:
    assert problem(service.request("POST", "/pacs/jobs", json=order("1.2", model="nobody")))["status"] == 404
    for path in ("", "/events", "/instances"):
        assert problem(service.get(f"/pacs/jobs/nobody{path}"))["status"] == 404
    assert problem(service.request("POST", "/pacs/jobs/nobody/retry"))["status"] == 404
    assert problem(service.get("/pacs/jobs?cursor=rubbish"))["status"] == 422


def test_without_a_pacs_there_are_no_jobs(client: Client) -> None:
    refused = problem(client.request("POST", "/pacs/jobs", json=order("1.2")))
    assert refused["type"].endswith("pacs-off")
    assert problem(client.get("/pacs/status"))["status"] == 503


def test_metrics_tell_no_uid(service: Client, series: str) -> None:
    wait(service, submit(service, series)["id"])
    service.get("/pacs/status")
    text = service.get("/metrics").text
    assert 'medrestore_pacs_jobs{state="completed"}' in text
    assert 'medrestore_pacs_instances_total{outcome="stored"}' in text
    assert 'medrestore_pacs_call_duration_seconds_count{outcome="2xx",verb="qido"}' in text
    assert "medrestore_pacs_oldest_waiting_seconds" in text
    assert series not in text
