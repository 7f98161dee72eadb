"""PACS jobs against a scripted PACS. Numbers of failure cases are those of the integration's own list of 22."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.jobs.folder import JobFolder
from models.imaging.dicom import decode_dicom
from tests.dicom_objects import enhanced, file_of, read
from tests.fake_pacs import FakePacs, multipart, slices, told
from tests.integration.client import Client, problem
from tests.pacs_service import order, outcomes, pacs_service, submit, wait


@pytest.fixture(scope="module")
def pacs() -> FakePacs:
    return FakePacs()


@pytest.fixture(scope="module")
def service(pacs: FakePacs, built_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with pacs_service(pacs, built_repository, tmp_path_factory.mktemp("state") / "jobs") as client:
        yield client


@pytest.fixture
def series(pacs: FakePacs) -> str:
    """UID of a series of 6 slices that is this test's own."""
    uid = f"1.2.3.{len(pacs.objects) + 1000}"
    for data in slices(6, uid):
        pacs.add(data)
    return uid


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


@pytest.mark.parametrize("reason", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")])
def test_case_1_a_pacs_that_is_down_has_the_job_wait(
    service: Client, pacs: FakePacs, series: str, reason: Exception
) -> None:
    def down(verb: str, request: httpx.Request) -> None:
        raise reason

    with pacs.rule(down):
        id = submit(service, series)["id"]
        job = wait(service, id, "waiting")
        assert job["next_try"] is not None
        assert job["waiting_since"] is not None
        assert job["problem"]["type"].endswith("pacs-unavailable")
        status = service.get("/pacs/status").json()["pacs"]["main"]
        assert (status["reachable"], status["authorised"]) == (False, None)
        assert status["oldest_waiting_s"] is not None
    assert wait(service, id)["state"] == "completed"
    assert service.get("/pacs/status").json()["pacs"]["main"]["reachable"]


def test_case_1_a_job_gives_up_in_the_end(built_repository: Path, tmp_path: Path) -> None:
    fake = FakePacs()

    def down(verb: str, request: httpx.Request) -> None:
        raise httpx.ConnectError("refused")

    fake.rules.append(down)
    with pacs_service(fake, built_repository, tmp_path / "jobs", pacs_give_up_s=0.3) as client:
        job = wait(client, submit(client, "1.2.3.1")["id"])
    assert job["state"] == "failed"
    assert job["problem"]["type"].endswith("pacs-unavailable")


@pytest.mark.parametrize("status", [401, 403])
def test_case_2_wrong_credentials_block_and_changed_ones_resume(
    built_repository: Path, tmp_path: Path, status: int
) -> None:
    fake, secret = FakePacs(), tmp_path / "password"
    secret.write_text("wrong")
    for data in slices(3):
        fake.add(data)

    def guard(verb: str, request: httpx.Request) -> httpx.Response | None:
        right = httpx.BasicAuth("user", "right")._auth_header
        return None if request.headers["authorization"] == right else httpx.Response(status)

    fake.rules.append(guard)
    from app.pacs.peer import Peer

    peer = Peer(url="http://pacs", user="user", password_file=secret, retries=0)
    with pacs_service(fake, built_repository, tmp_path / "jobs", peer=peer) as client:
        id = submit(client, "1.2.3.1")["id"]
        job = wait(client, id, "blocked")
        assert job["problem"]["type"].endswith("pacs-denied")
        client.runner.run(asyncio.sleep(0.5))  # several looks at the credentials
        assert len(fake.calls) <= 4  # no storm
        assert client.get("/pacs/status").json()["pacs"]["main"]["authorised"] is False
        assert client.request("POST", f"/pacs/jobs/{id}/retry").status_code == 200
        wait(client, id, "blocked")
        secret.write_text("right")
        assert wait(client, id)["state"] == "completed"


def test_case_2_jobs_that_are_blocked_again_at_once_get_one_try(built_repository: Path, tmp_path: Path) -> None:
    """A PACS that answers, and lets nobody see a series."""
    fake = FakePacs()
    fake.rules.append(lambda verb, request: httpx.Response(403) if request.url.path.endswith("/instances") else None)
    with pacs_service(fake, built_repository, tmp_path / "jobs", pacs_jobs=8) as client:
        for number in range(40):
            submit(client, f"1.2.3.{number}")
        for job in client.get("/pacs/jobs?limit=100").json()["jobs"]:
            wait(client, job["id"], "blocked")
        client.runner.run(asyncio.sleep(0.5))
        assert len(fake.calls) <= 100


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


def test_case_3_a_stalled_instance_is_asked_for_again(service: Client, pacs: FakePacs, series: str) -> None:
    stalls = iter([True])

    def stall(verb: str, request: httpx.Request) -> httpx.Response | None:
        if verb == "wado-series":
            return httpx.Response(400)
        if verb == "wado" and request.url.path.endswith(f"{series}.2") and next(stalls, False):
            raise httpx.ReadTimeout("stalled")
        return None

    with pacs.rule(stall):
        job = wait(service, submit(service, series)["id"])
    assert (job["state"], job["instances"]["verified"]) == ("completed", 6)


def test_case_3_an_instance_that_never_comes_is_given_up_alone(service: Client, pacs: FakePacs, series: str) -> None:
    def stall(verb: str, request: httpx.Request) -> httpx.Response | None:
        if verb == "wado-series":
            return httpx.Response(400)
        if request.url.path.endswith(f"{series}.2"):
            raise httpx.ReadTimeout("stalled")
        return None

    with pacs.rule(stall):
        job = wait(service, submit(service, series)["id"])
        assert job["state"] == "completed_with_gaps"
        assert outcomes(service, job["id"])[f"{series}.2"] == ("failed", "pacs_timeout")
        assert job["instances"]["verified"] == 5
    assert service.request("POST", f"/pacs/jobs/{job['id']}/retry").status_code == 200
    assert wait(service, job["id"])["instances"]["verified"] == 6


def test_case_3_a_pacs_that_lists_and_sends_nothing_has_the_job_wait(
    service: Client, pacs: FakePacs, series: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dumb(verb: str, request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(500) if verb.startswith("wado") else None

    monkeypatch.setattr("app.pacs.flow.LONG_S", 60)
    with pacs.rule(dumb):
        id = submit(service, series)["id"]
        asked = pacs.count("wado-series")
        wait(service, id, lambda job: pacs.count("wado-series") > asked + 4 and job["state"] == "waiting")
    assert wait(service, id)["instances"]["verified"] == 6


def test_case_3_a_stream_that_always_fails_is_done_without(service: Client, pacs: FakePacs, series: str) -> None:
    def poison(verb: str, request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(500) if verb == "wado-series" else None

    with pacs.rule(poison):
        job = wait(service, submit(service, series)["id"])
    assert (job["state"], job["instances"]["verified"]) == ("completed", 6)


@pytest.mark.parametrize("keep", [200, 5000, 9000])
def test_case_4_a_stream_that_breaks_off_is_never_taken_for_whole(
    service: Client, pacs: FakePacs, series: str, keep: int
) -> None:
    files = [held.data for held in pacs.series(series).values()]

    def cut(verb: str, request: httpx.Request) -> httpx.Response | None:
        return multipart(files, keep) if verb == "wado-series" and pacs.count("wado-series") < broken_at + 3 else None

    broken_at = pacs.count("wado-series")
    with pacs.rule(cut):
        job = wait(service, submit(service, series)["id"])
    assert (job["state"], job["instances"]["verified"]) == ("completed", 6)


def test_case_5_a_busy_pacs_is_given_its_time(service: Client, pacs: FakePacs, series: str) -> None:
    def busy(verb: str, request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(503, headers={"Retry-After": "7"}) if verb == "stow" else None

    with pacs.rule(busy):
        job = wait(service, submit(service, series)["id"], "waiting")
        stows = pacs.count("stow")
        service.runner.run(asyncio.sleep(0.5))
        assert pacs.count("stow") == stows
        assert job["next_try"] is not None
    service.request("POST", f"/pacs/jobs/{job['id']}/cancel")
    service.app.state.pacs._connections["main"].web._call._not_before = 0.0  # or the next test waits, too


def test_case_6_only_what_is_missing_is_sent(service: Client, pacs: FakePacs, series: str) -> None:
    done = wait(service, submit(service, series)["id"])
    for uid in list(pacs.series(done["derived_series"]))[:4]:
        del pacs.objects[uid]
    before = len(pacs.stored)
    submit(service, series, status=200)
    job = wait(service, done["id"], lambda job: len(pacs.stored) == before + 4 and job["state"] == "completed")
    assert job["instances"]["verified"] == 6
    assert len(pacs.series(done["derived_series"])) == 6


@pytest.mark.parametrize(("late", "state"), [(2, "completed"), (10**6, "completed_with_gaps")])
def test_what_the_pacs_took_and_does_not_list_is_waited_for_a_while(
    service: Client, pacs: FakePacs, series: str, late: int, state: str
) -> None:
    derived = ""
    lists = 0

    def lag(verb: str, request: httpx.Request) -> httpx.Response | None:
        nonlocal lists
        if not derived or verb != "qido" or derived not in request.url.path or "offset=0" not in str(request.url):
            return None
        lists += 1
        return httpx.Response(200, json=[]) if lists <= late + 1 else None

    with pacs.rule(lag):
        job = submit(service, series)
        derived = job["derived_series"]
        job = wait(service, job["id"])
    assert job["state"] == state
    assert set(outcomes(service, job["id"]).values()) == (
        {("verified", None)} if state == "completed" else {("failed", "not_kept")}
    )


@pytest.mark.parametrize("status", [200, 202, 400, 409])
def test_case_7_partial_success_counts_whatever_the_status(
    service: Client, pacs: FakePacs, series: str, status: int
) -> None:
    def partly(verb: str, request: httpx.Request) -> httpx.Response | None:
        if verb != "stow":
            return None
        before = len(pacs.stored)
        pacs._stow(request, request.extensions["body"], "1.2.3")
        sent = pacs.stored[before:]
        for uid in sent[-1:]:
            pacs.objects.pop(uid)
        return told(sent[:-1], [(sent[-1], 0xA900)], status)

    with pacs.rule(partly):
        job = wait(service, submit(service, series)["id"])
    assert job["state"] == "completed_with_gaps"
    assert job["instances"]["verified"] == 5
    assert sorted(outcomes(service, job["id"]).values(), key=str)[0] == ("failed", "refused_a900")


def test_case_12_an_instance_deleted_after_listing_is_gone(service: Client, pacs: FakePacs, series: str) -> None:
    def delete(verb: str, request: httpx.Request) -> None:
        if verb.startswith("wado"):
            pacs.objects.pop(f"{series}.3", None)

    with pacs.rule(delete):
        job = wait(service, submit(service, series)["id"])
    assert job["state"] == "completed_with_gaps"
    assert outcomes(service, job["id"])[f"{series}.3"] == ("gone", None)
    assert job["instances"]["verified"] == 5


def test_case_17_other_pixels_under_our_uid_fail_the_job(service: Client, pacs: FakePacs, series: str) -> None:
    planted: list[str] = []

    def plant(verb: str, request: httpx.Request) -> httpx.Response | None:
        """Answers 200 and keeps other pixels, as Orthanc does for a UID that is there."""
        if verb != "stow":
            return None
        before = len(pacs.stored)
        answer = pacs._stow(request, request.extensions["body"], "1.2.3")
        for uid in pacs.stored[before:]:
            dataset = read(pacs.objects[uid].data)
            dataset.PixelData = bytes(len(dataset.PixelData))
            del pacs.objects[uid]
            planted.append(pacs.add(file_of(dataset)))
        return answer

    with pacs.rule(plant):
        job = wait(service, submit(service, series)["id"])
    assert planted
    assert job["state"] == "failed"
    assert job["problem"]["type"].endswith("pixels-differ")


def test_case_17_other_pixels_from_before_the_job_are_found(service: Client, pacs: FakePacs, series: str) -> None:
    done = wait(service, submit(service, series)["id"])
    for uid in pacs.series(done["derived_series"]):
        dataset = read(pacs.objects[uid].data)
        dataset.PixelData = bytes(len(dataset.PixelData))
        del pacs.objects[uid]
        pacs.add(file_of(dataset))
    service.runner.run(service.app.state.jobs.delete(done["id"]))  # the job is forgotten
    job = wait(service, submit(service, series)["id"])
    assert (job["state"], job["problem"]["type"].rpartition(":")[2]) == ("failed", "pixels-differ")


def test_case_20_a_study_that_takes_nothing_fails_the_job(service: Client, pacs: FakePacs, series: str) -> None:
    def conflict(verb: str, request: httpx.Request) -> httpx.Response | None:
        if verb != "stow":
            return None
        uids = [read(data).SOPInstanceUID for data in _parts(request)]
        return told([], [(uid, 272) for uid in uids], 409)

    with pacs.rule(conflict):
        job = wait(service, submit(service, series)["id"])
    assert job["state"] == "failed"
    assert job["problem"]["type"].endswith("pacs-refused")
    assert not pacs.series(job["derived_series"])


def test_case_21_a_full_disk_here_or_there_has_the_job_wait(
    service: Client, pacs: FakePacs, series: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.pacs import maker

    real = maker._Spool.write

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maker._Spool, "write", full)
    id = submit(service, series)["id"]
    job = wait(service, id, "waiting")
    assert job["problem"]["type"].endswith("disk-full")
    assert job["instances"]["pending"] == 6
    monkeypatch.setattr(maker._Spool, "write", real)

    def no_room(verb: str, request: httpx.Request) -> httpx.Response | None:
        if verb != "stow":
            return None
        return told([], [(read(data).SOPInstanceUID, 0xA700) for data in _parts(request)], 200)

    turned_away = pacs.count("stow")
    with pacs.rule(no_room):
        wait(service, id, lambda job: pacs.count("stow") > turned_away + 4 and job["state"] == "waiting")
    assert wait(service, id)["instances"]["verified"] == 6


def test_case_22_an_object_of_another_patient_is_never_stored(service: Client, pacs: FakePacs) -> None:
    study, uid = "1.2.8", "1.2.8.1"
    pacs.add(slices(1, uid, study)[0])
    pacs.add(slices(2, uid, study, PatientID="P2")[1])
    job = wait(service, submit(service, uid, study=study)["id"])
    assert (job["state"], job["problem"]["type"].rpartition(":")[2]) == ("failed", "identity-differs")


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_case_22_an_object_of_another_study_is_never_stored(
    service: Client, pacs: FakePacs, series: str, keyword: str
) -> None:
    wrong = slices(6, series, **{keyword: "1.2.99"})

    def swap(verb: str, request: httpx.Request) -> httpx.Response | None:
        return multipart(wrong) if verb == "wado-series" and series in request.url.path else None

    before = len(pacs.stored)
    with pacs.rule(swap):
        job = wait(service, submit(service, series)["id"])
    assert (job["state"], job["problem"]["type"].rpartition(":")[2]) == ("failed", "identity-differs")
    assert len(pacs.stored) == before


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


def _parts(request: httpx.Request) -> list[bytes]:
    from tests.fake_pacs import parts_of

    return parts_of(request.headers["content-type"], request.extensions["body"])
