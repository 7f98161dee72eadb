"""The DICOMweb client against a real Orthanc."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from app.pacs.call import open_client
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsDenied, PacsGone, PacsRefused, PacsUnavailable
from app.pacs.orthanc import Orthanc
from app.pacs.peer import Peer
from tests.orthanc import TestOrthanc

T = TypeVar("T")
pytestmark = pytest.mark.shared


def call(peer: Peer, work: Callable[[DicomWeb], Awaitable[T]], observe: Any = None) -> T:
    """What `work` does with a client of `peer`."""

    async def run() -> T:
        async with open_client(peer) as client:
            return await work(DicomWeb(peer, client, observe))

    return asyncio.run(run())


def ask(peer: Peer, work: Callable[[Orthanc], Awaitable[T]]) -> T:
    """The same with Orthanc's own API."""

    async def run() -> T:
        async with open_client(peer) as client:
            return await work(Orthanc(peer, client))

    return asyncio.run(run())


async def collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


@pytest.fixture
def ct_files(shared: Path) -> list[Path]:
    return sorted((shared / "data" / "dicom_series" / "ct_lidc0314").glob("*.dcm"))


def derive(path: Path, folder: Path, series: str, **changes: Any) -> Path:
    """A copy of `path` as an instance of its own in `series`."""
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = series
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    target = folder / f"{dataset.SOPInstanceUID}.dcm"
    dataset.save_as(target)
    return target


def names(path: Path) -> tuple[str, str, str]:
    """Study, series and SOP Instance UID."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    return str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID)


def test_series_and_instances_are_listed(orthanc: TestOrthanc, ct_files: list[Path]) -> None:
    orthanc.upload(ct_files)
    study, series, _ = names(ct_files[0])
    peer = orthanc.peer(page=5)
    found = call(peer, lambda web: web.series({"Modality": "CT", "StudyInstanceUID": study}, limit=10))
    assert [(row.study, row.series, row.modality, row.body_part) for row in found] == [(study, series, "CT", "CHEST")]
    assert found[0].instances == len(ct_files)
    assert call(peer, lambda web: web.series({"Modality": "CT"}, limit=10, offset=1)) == []
    rows = call(peer, lambda web: collect(web.instances(study, series)))
    assert {row.sop_instance for row in rows} == {names(path)[2] for path in ct_files}
    assert len(rows) == len(ct_files)
    assert {(row.rows, row.columns, row.frames) for row in rows} == {(512, 512, 1)}


def test_a_missing_series_has_no_instances_and_cannot_be_fetched(orthanc: TestOrthanc, tmp_path: Path) -> None:
    peer = orthanc.peer()
    assert call(peer, lambda web: collect(web.instances("1.2.3", "1.2.4"))) == []
    with pytest.raises(PacsGone):
        call(peer, lambda web: collect(web.retrieve_series("1.2.3", "1.2.4", tmp_path)))
    with pytest.raises(PacsGone):
        call(peer, lambda web: web.retrieve("1.2.3", "1.2.4", "1.2.5", tmp_path / "one.dcm"))
    assert list(tmp_path.iterdir()) == []


def test_a_series_is_streamed_as_it_is_stored(orthanc: TestOrthanc, shared: Path, tmp_path: Path) -> None:
    study, series = generate_uid(), generate_uid()
    compressed = ["CT_CT2_JLSL.dcm", "CT_693_J2KR.dcm", "CT_CT2_RLE.dcm", "CT_CT2_JPLL.dcm"]
    (tmp_path / "sent").mkdir()
    (tmp_path / "got").mkdir()
    same = {"StudyInstanceUID": study, "PatientID": "one"}
    sent = [derive(shared / "data" / "dicom" / name, tmp_path / "sent", series, **same) for name in compressed]
    orthanc.upload(sent)
    got = call(orthanc.peer(), lambda web: collect(web.retrieve_series(study, series, tmp_path / "got")))
    assert {names(path)[2]: path.read_bytes() for path in got} == {path.stem: path.read_bytes() for path in sent}
    assert ExplicitVRLittleEndian not in {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in got}
    assert sorted((tmp_path / "got").iterdir()) == sorted(got)


def test_one_instance_is_fetched_as_it_is_stored(orthanc: TestOrthanc, ct_files: list[Path], tmp_path: Path) -> None:
    orthanc.upload(ct_files[:2])
    call(orthanc.peer(), lambda web: web.retrieve(*names(ct_files[1]), tmp_path / "one.dcm"))
    assert (tmp_path / "one.dcm").read_bytes() == ct_files[1].read_bytes()


def test_copies_are_stored_in_batches_and_may_be_stored_again(
    orthanc: TestOrthanc, ct_files: list[Path], tmp_path: Path
) -> None:
    study, series = names(ct_files[0])[0], generate_uid()
    copies = [derive(path, tmp_path, series) for path in ct_files[:7]]
    calls: Counter[tuple[str, str]] = Counter()
    peer = orthanc.peer(stow_items=3)
    for _ in range(2):
        told = call(peer, lambda web: web.store(study, copies), lambda verb, status, _: calls.update([(verb, status)]))
        assert told.stored == {path.stem for path in copies}
        assert told.failed == {}
    assert calls == {("stow", "2xx"): 6}
    rows = call(peer, lambda web: collect(web.instances(study, series)))
    assert {row.sop_instance for row in rows} == {path.stem for path in copies}
    assert orthanc.http.get(f"/instances/{orthanc.find(copies[3].stem)[0]}/file").content == copies[3].read_bytes()


def test_the_good_part_beside_garbage_is_stored(orthanc: TestOrthanc, ct_files: list[Path], tmp_path: Path) -> None:
    study = names(ct_files[0])[0]
    good, garbage = derive(ct_files[0], tmp_path, generate_uid()), tmp_path / "garbage"
    garbage.write_bytes(b"not DICOM at all")
    told = call(orthanc.peer(), lambda web: web.store(study, [good, garbage]))
    assert told.stored == {good.stem}
    assert orthanc.find(good.stem)


def test_another_study_is_a_conflict(orthanc: TestOrthanc, ct_files: list[Path], tmp_path: Path) -> None:
    copy = derive(ct_files[0], tmp_path, generate_uid())
    told = call(orthanc.peer(), lambda web: web.store("1.2.3", [copy]))
    assert told.stored == set()
    assert {uid: failure.code for uid, failure in told.failed.items()} == {copy.stem: 272}


def test_garbage_alone_is_refused(orthanc: TestOrthanc, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"not DICOM at all")
    with pytest.raises(PacsRefused):
        call(orthanc.peer(), lambda web: web.store("1.2.3", [tmp_path / "garbage"]))


def test_reaching_needs_the_right_password_which_may_change(orthanc: TestOrthanc, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    peer = orthanc.peer(password=None, password_file=file)
    mark = peer.credential_mark()
    with pytest.raises(PacsDenied):
        call(peer, lambda web: web.reachable())
    file.write_text(orthanc.state["password"] + "\n")
    assert peer.credential_mark() != mark
    call(peer, lambda web: web.reachable())


def test_changes_are_read_from_any_number(orthanc: TestOrthanc, ct_files: list[Path]) -> None:
    peer = orthanc.peer()
    before = ask(peer, lambda api: api.last())
    orthanc.upload(ct_files[:2])
    page = ask(peer, lambda api: api.changes(before, 2))
    assert [change.number for change in page.entries] == [before + 1, before + 2]
    assert (page.last, page.done) == (before + 2, False)
    rest = ask(peer, lambda api: api.changes(page.last, 100))
    assert {change.kind for change in page.entries + rest.entries} >= {"NewInstance", "NewSeries", "NewStudy"}
    assert rest.done
    newest = ask(peer, lambda api: api.last())
    assert newest >= rest.last > before
    beyond = ask(peer, lambda api: api.changes(newest + 1000, 10))  # as after a reset of the PACS: only `last` tells
    assert (beyond.entries, beyond.done) == ([], True)


def test_a_series_tells_its_tags(orthanc: TestOrthanc, ct_files: list[Path], tmp_path: Path) -> None:
    orthanc.upload([derive(path, tmp_path, generate_uid(), StationName="CT21") for path in ct_files[:1]])
    orthanc.upload(ct_files[1:4])
    study, series, _ = names(ct_files[1])
    api_id = orthanc.find(series)[0]
    tags = ask(orthanc.peer(), lambda api: api.series(api_id))
    assert (tags.study, tags.series, tags.instances, tags.modality) == (study, series, 3, "CT")
    assert tags.image_type == ("ORIGINAL", "PRIMARY", "AXIAL", "HELIX")
    assert tags.header["SOPClassUID"] == "1.2.840.10008.5.1.4.1.1.2"
    with pytest.raises(PacsGone):
        ask(orthanc.peer(), lambda api: api.series("-".join(["01234567"] * 5)))
    with pytest.raises(ValueError, match="identifier"):
        ask(orthanc.peer(), lambda api: api.series("../instances"))


def test_a_series_tells_what_made_it(orthanc: TestOrthanc, ct_files: list[Path], tmp_path: Path) -> None:
    made_by = [pydicom.Dataset(), pydicom.Dataset()]
    made_by[0].Manufacturer = "A"
    made_by[1].DeviceUID = "2.25.7"
    orthanc.upload([derive(ct_files[0], tmp_path, series := generate_uid(), ContributingEquipmentSequence=made_by)])
    tags = ask(orthanc.peer(), lambda api: api.series(orthanc.find(series)[0]))
    assert tags.header["ContributingEquipmentSequence"] == [{"Manufacturer": "A"}, {"DeviceUID": "2.25.7"}]


async def fetch_until_killed(server: TestOrthanc, web: DicomWeb, study: str, series: str, folder: Path) -> list[Path]:
    """What came of a series whose server is killed after the second instance."""
    got: list[Path] = []
    try:
        async for path in web.retrieve_series(study, series, folder):
            got.append(path)
            if len(got) == 2:
                server.kill()
    except PacsUnavailable:
        return got
    pytest.fail("a broken body was taken for a whole one")


def test_a_pacs_killed_midway_loses_nothing(
    start_orthanc: Callable[..., TestOrthanc], ct_files: list[Path], tmp_path: Path
) -> None:
    server = start_orthanc()
    study, series = names(ct_files[0])[0], generate_uid()
    sent_to, folder = tmp_path / "sent", tmp_path / "got"
    sent_to.mkdir()
    folder.mkdir()
    sent = {path.stem: path.read_bytes() for path in (derive(source, sent_to, series) for source in ct_files)}
    server.upload(list(sent.values()))

    async def work(web: DicomWeb) -> None:
        got = await fetch_until_killed(server, web, study, series, folder)
        assert 2 <= len(got) < len(sent)
        assert sorted(folder.iterdir()) == got  # no half of a file
        assert all(path.read_bytes() == sent[names(path)[2]] for path in got)
        with pytest.raises(PacsUnavailable, match="connect"):
            await web.reachable()
        server.start()
        listed = {row.sop_instance async for row in web.instances(study, series)}
        for uid in listed - {names(path)[2] for path in got}:
            await web.retrieve(study, series, uid, folder / uid)

    call(server.peer(retry_s=0.01), work)
    assert {names(path)[2]: path.read_bytes() for path in folder.iterdir()} == sent


def test_a_pacs_killed_between_two_batches_ends_with_each_instance_once(
    start_orthanc: Callable[..., TestOrthanc], ct_files: list[Path], tmp_path: Path
) -> None:
    server = start_orthanc()
    study, series = names(ct_files[0])[0], generate_uid()
    copies = [derive(path, tmp_path, series) for path in ct_files]
    calls: list[str] = []

    def kill_after_three(verb: str, outcome: str, seconds: float) -> None:
        calls.append(outcome)
        if len(calls) == 3:
            server.kill()

    peer = server.peer(stow_items=2, retries=0)
    with pytest.raises(PacsUnavailable):
        call(peer, lambda web: web.store(study, copies), kill_after_three)
    assert calls[:3] == ["2xx"] * 3
    assert len(calls) == 4
    server.start()
    assert len(call(peer, lambda web: collect(web.instances(study, series)))) == 6
    assert call(peer, lambda web: web.store(study, copies)).stored == {path.stem for path in copies}
    rows = call(peer, lambda web: collect(web.instances(study, series)))
    assert sorted(row.sop_instance for row in rows) == sorted(path.stem for path in copies)
