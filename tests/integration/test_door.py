"""The doors of the service, STOW and C-STORE: what is answered, and what comes out in the PACS."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from models.errors import BundleNotFound
from models.imaging.dicom import decode_dicom
from tests.dicom_objects import dataset_of, file_of, grey, packaged, read
from tests.fake_pacs import FakePacs, parts_of, slices
from tests.fake_pacs import told as answered
from tests.integration.client import Client, problem
from tests.pacs_service import END_S, pacs_service

DOOR = '[door]\npacs = "main"\n'
RESTORE = '[door.default]\noperation = "denoise"\noptions = {strength = 0.5}\n'
BOUNDARY = "a-boundary"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@pytest.fixture(scope="module")
def pacs() -> FakePacs:
    return FakePacs()


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(DOOR + RESTORE)
    return path


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state") / "jobs"


@pytest.fixture(scope="module")
def service(pacs: FakePacs, built_repository: Path, rules: Path, jobs: Path) -> Iterator[Client]:
    settings: dict[str, Any] = {
        "pacs_rules": rules,
        "door_instances": 20,
        "door_bytes": 2**20,
        "dimse_port": 0,
        "dimse_calling": ["SCANNER"],
        "dimse_associations": 2,
    }
    with pacs_service(pacs, built_repository, jobs, **settings) as client:
        yield client


@pytest.fixture(autouse=True)
def _emptied(pacs: FakePacs) -> None:
    pacs.objects.clear()


def body_of(parts: list[bytes]) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def stow(client: Client, parts: list[bytes], path: str = "/dicomweb/studies", **headers: str) -> httpx.Response:
    return client.post(path, body_of(parts), headers={"Content-Type": TYPE} | headers)


def told(response: httpx.Response) -> tuple[list[str], dict[str, int], list[int]]:
    """Instances that were taken, those that failed with their reasons, reasons of parts that are no instances."""
    assert response.headers["Content-Type"] == "application/dicom+json"
    answer = json.loads(response.content)
    assert "Value" not in answer["00081190"]

    def items(tag: str) -> list[dict[str, Any]]:
        return list(answer.get(tag, {}).get("Value", []))

    def uid(item: dict[str, Any]) -> str:
        assert item["00081150"]["Value"][0].startswith("1.2.840.10008.5.1.4.1.1.")
        return str(item["00081155"]["Value"][0])

    def reason(item: dict[str, Any]) -> int:
        return int(item["00081197"]["Value"][0])

    failed = {uid(item): reason(item) for item in items("00081198")}
    return [uid(item) for item in items("00081199")], failed, [reason(item) for item in items("0008119A")]


def until(client: Client, wanted: Callable[[], object]) -> None:
    stop = time.monotonic() + END_S
    while not wanted():
        assert time.monotonic() < stop
        client.runner.run(asyncio.sleep(0.02))


def idle(client: Client, jobs: Path) -> None:
    """Returns when the doors' spool and all jobs' folders are empty."""
    until(client, lambda: not any((*jobs.glob("spool/*/*"), *jobs.glob("files/*"))))


def restored(pacs: FakePacs) -> list[Any]:
    """Derived objects that the PACS holds."""
    objects = [read(held.data) for held in pacs.objects.values()]
    return sorted((o for o in objects if o.get("ImageType", [""])[0] == "DERIVED"), key=lambda o: o.InstanceNumber)


def test_what_is_stored_here_comes_out_restored_in_the_pacs(service: Client, pacs: FakePacs, jobs: Path) -> None:
    sources = slices(20, "1.2.3.50")
    stored, failed, others = told(response := stow(service, sources))
    assert (response.status_code, len(stored), failed, others) == (200, 20, {}, [])
    idle(service, jobs)
    objects = restored(pacs)
    assert len(objects) == len(pacs.objects) == 20
    assert len({o.SeriesInstanceUID for o in objects}) == 1
    for source, made in zip(sources, objects, strict=True):
        direct = service.post("/denoise?strength=0.5", source)
        found = pacs.objects[made.SOPInstanceUID].data
        assert np.array_equal(decode_dicom(found).pixels, decode_dicom(direct.content).pixels)
        assert made.StudyInstanceUID == read(source).StudyInstanceUID


def test_each_part_is_judged_with_the_reason_of_the_standard(service: Client, pacs: FakePacs, jobs: Path) -> None:
    first, second, other = slices(3, "1.2.3.51")
    cut = second[: len(second) - 200]
    elsewhere = slices(1, "1.2.9.1", study="1.2.9")[0]
    derived = slices(1, "1.2.3.52", ImageType=["DERIVED", "PRIMARY", "MPR"])[0]
    report = packaged("reportsi.dcm")
    parts = [first, b"no DICOM at all", cut, first, elsewhere, derived, report, other]
    response = stow(service, parts, "/dicomweb/studies/1.2.3")
    stored, failed, others = told(response)
    assert response.status_code == 202
    assert stored == [read(part).SOPInstanceUID for part in (first, other)]
    known = {"cut": second, "first": first, "derived": derived}
    names = {read(part).SOPInstanceUID: name for name, part in known.items()}
    assert {names.get(uid, "other study"): code for uid, code in failed.items()} == {
        "cut": 0xC000,
        "first": 0x0111,
        "derived": 0x0124,
        "other study": 0xA900,
    }
    assert others == [0xC000]
    idle(service, jobs)
    assert len(restored(pacs)) == 2


def test_other_reasons(service: Client, jobs: Path) -> None:
    coded = slices(1)[0].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0")  # a transfer syntax nobody knows
    response = stow(service, [packaged("reportsi.dcm"), coded, packaged("liver_1frame.dcm")])
    stored, failed, others = told(response)
    assert response.status_code == 409
    assert (stored, others) == ([], [])
    assert sorted(failed.values()) == [0x0122, 0x0122, 0xC122]
    assert list(jobs.glob("spool/stow*")) == []


@pytest.mark.parametrize(
    ("status", "content_type", "body", "headers"),
    [
        (415, "application/dicom", b"x", {}),
        (415, 'multipart/related; type="application/dicom+json"; boundary=b', b"x", {}),
        (400, 'multipart/related; type="application/dicom"', b"x", {}),
        (400, TYPE, b"", {}),
        (400, TYPE, body_of([b"x"])[:-8], {}),
        (400, TYPE, f"--{BOUNDARY}--\r\n".encode(), {}),
        (406, TYPE, body_of([b"x"]), {"Accept": "application/dicom+xml"}),
        (413, TYPE, body_of([b"x" * 2**20]), {}),
        (413, TYPE, body_of([b"x"] * 21), {}),
    ],
)
def test_a_request_that_is_none_is_refused_and_leaves_nothing(
    service: Client, jobs: Path, status: int, content_type: str, body: bytes, headers: dict[str, str]
) -> None:
    response = service.post("/dicomweb/studies", body, headers={"Content-Type": content_type} | headers)
    assert response.status_code == status
    problem(response)
    assert list(jobs.glob("spool/stow*")) == []


def test_a_body_of_unknown_length_that_is_too_long_is_refused(service: Client, jobs: Path) -> None:
    async def endless():
        yield body_of([b"x" * 70000])[:70000]
        for _ in range(40):
            yield b"x" * 70000

    response = service.request("POST", "/dicomweb/studies", content=endless(), headers={"Content-Type": TYPE})
    assert problem(response)["status"] == 413
    assert list(jobs.glob("spool/stow*")) == []


def test_a_pacs_that_is_down_costs_time_alone(service: Client, pacs: FakePacs, jobs: Path) -> None:
    def down(verb: str, request: httpx.Request) -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    with pacs.rule(down):
        assert stow(service, slices(3, "1.2.3.53")).status_code == 200
        until(service, lambda: 'outcome="connect"' in service_metrics(service))
        assert pacs.objects == {}
    idle(service, jobs)
    assert len(restored(pacs)) == 3


def service_metrics(client: Client) -> str:
    return client.service.metrics.text().decode()


def test_originals_go_first_and_all_kinds_pass(service: Client, pacs: FakePacs, rules: Path, jobs: Path) -> None:
    before = rules.read_text()
    rules.write_text(DOOR + "originals = true\n" + RESTORE)
    try:
        localizer = slices(1, "1.2.3.54", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        response = stow(service, [*slices(2, "1.2.3.55"), *localizer, packaged("reportsi.dcm")])
        assert (response.status_code, len(told(response)[0])) == (200, 4)
        idle(service, jobs)
    finally:
        rules.write_text(before)
    assert len(pacs.objects) == 6
    assert {made.SourceImageSequence[0].ReferencedSOPInstanceUID for made in restored(pacs)} <= set(pacs.objects)
    assert len(restored(pacs)) == 2


BIG = '[[door.route]]\nname = "big"\nwhen = {min_instances = 3}\noperation = "denoise"\n'


def test_routes_of_the_door_choose_by_series(pacs: FakePacs, built_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(DOOR + BIG)
    with pacs_service(pacs, built_repository, tmp_path / "jobs", pacs_rules=tmp_path / "rules.toml") as client:
        assert stow(client, slices(3, "1.2.3.56")).status_code == 200
        idle(client, tmp_path / "jobs")
        assert len(restored(pacs)) == 3
        response = stow(client, slices(2, "1.2.3.57"))
        assert (response.status_code, set(told(response)[1].values())) == (409, {0x0124})


def test_rules_that_would_drop_what_c_store_accepted_are_refused(service: Client, rules: Path) -> None:
    before = rules.read_text()
    rules.write_text(DOOR + BIG)
    try:
        assert "min_instances" in service.get("/pacs/status").json()["rules_problem"]
        assert stow(service, slices(1, "1.2.3.59")).status_code == 200  # by the rules before
    finally:
        rules.write_text(before)
    assert service.get("/pacs/status").json()["rules_problem"] is None


def test_a_body_that_stops_coming_is_given_up(pacs: FakePacs, built_repository: Path, tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield body_of(slices(2, "1.2.3.58"))[:1000]
        await asyncio.sleep(END_S)

    (tmp_path / "rules.toml").write_text(DOOR + RESTORE)
    settings: dict[str, Any] = {"pacs_rules": tmp_path / "rules.toml", "stall_s": 0.1}
    with pacs_service(pacs, built_repository, tmp_path / "jobs", **settings) as client:
        response = client.request("POST", "/dicomweb/studies", content=body(), headers={"Content-Type": TYPE})
        assert problem(response)["type"].endswith("upload-stalled")
        assert list(tmp_path.glob("jobs/spool/*")) == []


def test_what_was_accepted_outlasts_a_pacs_that_is_down_and_a_model_that_is_gone(
    pacs: FakePacs, built_repository: Path, tmp_path: Path
) -> None:
    def down(verb: str, request: httpx.Request) -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    def gone(*_: object) -> None:
        raise BundleNotFound("another model")

    (tmp_path / "rules.toml").write_text(DOOR + RESTORE)
    settings: dict[str, Any] = {"pacs_rules": tmp_path / "rules.toml", "pacs_give_up_s": 0.01}
    with pacs_service(pacs, built_repository, tmp_path / "jobs", **settings) as client:

        def state() -> str:
            return str(client.get("/dicomweb/jobs").json()["jobs"][0]["state"])

        with pacs.rule(down):
            assert stow(client, slices(3, "1.2.3.81")).status_code == 200
            until(client, lambda: state() == "waiting")
            client.runner.run(asyncio.sleep(0.3))
            assert state() in ("waiting", "running")
            with patch("app.pacs.forward.bundle_of", gone):
                until(client, lambda: state() == "blocked")
        client.request("POST", f"/dicomweb/jobs/{client.get('/dicomweb/jobs').json()['jobs'][0]['id']}/retry")
        idle(client, tmp_path / "jobs")
    assert len(restored(pacs)) == 3


def test_without_a_door_nothing_is_taken(service: Client, rules: Path) -> None:
    before = rules.read_text()
    rules.write_text("# no door\n")
    try:
        assert "no [door]" in problem(stow(service, slices(1)))["detail"]
    finally:
        rules.write_text(before)


@pytest.mark.parametrize("seed", range(12))
def test_damage_is_judged_and_never_an_error(service: Client, jobs: Path, seed: int) -> None:
    dice = np.random.default_rng(seed)
    parts = []
    for data in slices(4, "1.2.3.66"):
        body = bytearray(data)
        for place in dice.integers(0, len(body), 8):
            body[place] = dice.integers(0, 256)
        parts.append(bytes(body[: dice.integers(len(body) // 2, len(body) + 1)]))
    response = stow(service, parts)
    assert response.status_code in (200, 202, 409)
    assert sum(map(len, told(response))) == 4


# -- C-STORE --------------------------------------------------------------------------------------


def send(client: Client, files: list[bytes], title: str = "SCANNER", called: str = "MEDRESTORE") -> list[int] | None:
    """Statuses of C-STORE, None where no association was to be had."""
    listener = client.app.state.routing.listener
    ae = AE(ae_title=title)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    ae.add_requested_context(Verification)

    def store() -> list[int] | None:
        association = ae.associate("127.0.0.1", listener.port, ae_title=called)
        if not association.is_established:
            return None
        assert association.send_c_echo().Status == 0
        statuses = [association.send_c_store(read(file)).get("Status") for file in files]
        association.release()
        return statuses

    return client.runner.run(asyncio.to_thread(store))


def test_what_is_sent_by_c_store_comes_out_restored(service: Client, pacs: FakePacs, jobs: Path) -> None:
    assert send(service, slices(4, "1.2.3.60")) == [0, 0, 0, 0]
    idle(service, jobs)
    assert len(restored(pacs)) == 4


def test_c_store_answers_what_is_wrong_and_takes_the_rest(service: Client, pacs: FakePacs, jobs: Path) -> None:
    good, other = slices(2, "1.2.3.61")
    derived = slices(1, "1.2.3.62", ImageType=["DERIVED", "PRIMARY"])[0]
    empty = file_of(dataset_of(grey(), SOPInstanceUID="1.2.3.63.1", Rows=600))
    assert send(service, [good, derived, empty, other]) == [0, 0x0124, 0xC000, 0]
    idle(service, jobs)
    assert len(restored(pacs)) == 2


@pytest.mark.parametrize(("title", "called"), [("STRANGER", "MEDRESTORE"), ("SCANNER", "ARCHIVE")])
def test_strangers_and_misdirected_calls_are_refused(service: Client, title: str, called: str) -> None:
    assert send(service, slices(1, "1.2.3.64"), title, called) is None


def test_no_more_senders_at_a_time_than_are_allowed(service: Client) -> None:
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(Verification)
    port = service.app.state.routing.listener.port

    def call() -> list[bool]:
        calls = [ae.associate("127.0.0.1", port, ae_title="MEDRESTORE") for _ in range(3)]
        established = [association.is_established for association in calls]
        for association in calls:
            association.release()
        return established

    assert service.runner.run(asyncio.to_thread(call)) == [True, True, False]


def test_an_association_has_a_limit_of_instances(service: Client, pacs: FakePacs, jobs: Path) -> None:
    assert send(service, slices(21, "1.2.3.65")) == [0] * 20 + [0xA700]
    idle(service, jobs)
    assert len(restored(pacs)) == 20


def test_what_a_death_left_in_the_spool_becomes_jobs(
    pacs: FakePacs, built_repository: Path, rules: Path, tmp_path: Path
) -> None:
    for name in ("dimse-0123", "stow-4567"):
        folder = tmp_path / "jobs" / "spool" / name
        folder.mkdir(parents=True)
        for index, data in enumerate(slices(3, f"1.2.3.7{name[-1]}")):
            (folder / f"{index:06}.dcm").write_bytes(data)
        (folder / "000009.dcm").write_bytes(data[:200])
    with pacs_service(pacs, built_repository, tmp_path / "jobs", pacs_rules=rules) as client:
        idle(client, tmp_path / "jobs")
    assert len(restored(pacs)) == 3  # a STOW request that was cut off was answered to nobody
    assert list((tmp_path / "jobs" / "spool").glob("*")) == []


def spooled(root: Path, *files: bytes) -> Path:
    """What an association of a service that died has left."""
    folder = root / "spool" / "dimse-0123"
    folder.mkdir(parents=True)
    for index, data in enumerate(files):
        (folder / f"{index:06}.dcm").write_bytes(data)
    return folder


def test_one_series_uid_in_two_studies_is_two_series(pacs: FakePacs, built_repository: Path, tmp_path: Path) -> None:
    mine, other = slices(2, "1.2.3.77"), slices(1, "1.2.3.77", "1.2.4", SOPInstanceUID="1.2.4.9")
    spooled(tmp_path / "jobs", *mine, *other)
    (tmp_path / "rules.toml").write_text(DOOR + RESTORE)
    with pacs_service(pacs, built_repository, tmp_path / "jobs", pacs_rules=tmp_path / "rules.toml") as client:
        idle(client, tmp_path / "jobs")
    assert sorted(made.StudyInstanceUID for made in restored(pacs)) == ["1.2.3", "1.2.3", "1.2.4"]


def test_what_was_accepted_is_kept_until_rules_take_it(
    pacs: FakePacs, built_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.pacs.door.RETRY_S", 0.05)
    other = slices(1, "1.2.3.79", Modality="MR")
    folder = spooled(tmp_path / "jobs", *slices(2, "1.2.3.78"), *other)
    rules = tmp_path / "rules.toml"
    rules.write_text(DOOR + '[[door.route]]\nname = "mr"\nwhen = {Modality = "MR"}\noperation = "denoise"\n')
    with pacs_service(pacs, built_repository, tmp_path / "jobs", pacs_rules=rules) as client:
        until(client, lambda: restored(pacs))
        assert {read(path.read_bytes()).Modality for path in folder.iterdir()} == {"CT"}
        rules.write_text(DOOR + RESTORE)
        idle(client, tmp_path / "jobs")
    assert [made.Modality for made in restored(pacs)].count("CT") == 2


def test_a_refused_delivery_fails_and_can_be_tried_again(service: Client, pacs: FakePacs, jobs: Path) -> None:
    def refuse(verb: str, request: httpx.Request) -> httpx.Response | None:
        return answered([], [(read(data).SOPInstanceUID, 0x0110) for data in sent(request)], 409)

    def sent(request: httpx.Request) -> list[bytes]:
        return parts_of(request.headers["content-type"], request.extensions["body"])

    def newest() -> dict[str, Any]:
        return dict(service.get("/dicomweb/jobs?limit=1").json()["jobs"][0])

    with pacs.rule(refuse):
        assert stow(service, slices(3, "1.2.3.58")).status_code == 200
        until(service, lambda: newest()["state"] == "failed")
    assert (newest()["settled"], newest()["instances"], newest()["series"]) == (3, 3, "1.2.3.58")
    assert pacs.objects == {}
    assert service.request("POST", f"/dicomweb/jobs/{newest()['id']}/retry").json()["problem"]
    until(service, lambda: newest()["state"] == "completed")
    assert len(restored(pacs)) == 3
    assert newest()["derived_series"] == restored(pacs)[0].SeriesInstanceUID
    assert service.request("POST", "/dicomweb/jobs/0123/retry").status_code == 404
    idle(service, jobs)


def test_a_refused_part_leaves_a_gap(service: Client, pacs: FakePacs, jobs: Path) -> None:
    def partly(verb: str, request: httpx.Request) -> httpx.Response | None:
        sent = parts_of(request.headers["content-type"], request.extensions["body"])
        uids = [pacs.add(data) for data in sent]
        del pacs.objects[uids[-1]]
        return answered(uids[:-1], [(uids[-1], 0x0122)], 202)

    with pacs.rule(partly):
        assert stow(service, slices(3, "1.2.3.59")).status_code == 200
        until(service, lambda: service.get("/dicomweb/jobs?limit=1").json()["jobs"][0]["finished"])
    job = service.get("/dicomweb/jobs?limit=1").json()["jobs"][0]
    assert (job["state"], job["failed"], job["settled"]) == ("completed_with_gaps", 1, 3)
    assert len(restored(pacs)) == 2
    service.request("POST", f"/dicomweb/jobs/{job['id']}/retry")
    idle(service, jobs)
    assert len(restored(pacs)) == 3


def test_half_received_instances_do_not_stay(service: Client, jobs: Path) -> None:
    left, fresh = (jobs / "spool" / "incoming" / name for name in ("left.dcm", "fresh.dcm"))
    for path in (left, fresh):
        path.write_bytes(b"x")
    os.utime(left, (1, 1))
    assert send(service, []) == []
    until(service, lambda: not left.exists())
    assert fresh.exists()
    fresh.unlink()


def test_a_database_that_cannot_be_used_costs_routing_alone(
    pacs: FakePacs, built_repository: Path, rules: Path, tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "routing.sqlite3").write_bytes(b"no database" * 100)
    with pacs_service(pacs, built_repository, tmp_path / "jobs", pacs_rules=rules) as client:
        assert "routing.sqlite3" in problem(stow(client, slices(1)))["detail"]
        assert client.get("/pacs/route").status_code == 503
        assert client.get("/pacs/status").status_code == 200
