"""PACS jobs when things go wrong, against a scripted PACS. Case numbers are those of the integration's list of 22."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dicom_objects import file_of, read
from tests.fake_pacs import FakePacs, multipart, slices, told
from tests.integration.client import Client
from tests.pacs_service import outcomes, pacs_service, submit, wait


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


def _parts(request: httpx.Request) -> list[bytes]:
    from tests.fake_pacs import parts_of

    return parts_of(request.headers["content-type"], request.extensions["body"])
