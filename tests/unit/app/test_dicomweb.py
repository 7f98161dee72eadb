"""QIDO, WADO and STOW as a scripted PACS answers them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.pacs.dicomweb import DicomWeb, Failure, Stored, batches
from app.pacs.errors import PacsMalformed, PacsRefused, PacsUnavailable
from app.pacs.multipart import Reader, boundary_of
from tests.scripted_pacs import Answer, Seen, as_json, as_parts, dicom_json, instance, stow
from tests.unit.app.test_pacs_call import INSTANCE, SERIES, STUDY, collect, failing, list_all, run


def uids(count: int, start: int = 0) -> list[str]:
    return [f"1.2.5.{index}" for index in range(start, start + count)]


def page(*found: str) -> Answer:
    return as_json([instance(uid) for uid in found])


@pytest.mark.parametrize("nothing", [Answer(204), as_json([])], ids=["204", "empty list"])
def test_no_hits_are_no_error(nothing: Answer) -> None:
    assert run(list_all, nothing)[0] == []
    assert run(lambda web: web.series({}, 10), nothing)[0] == []


def test_a_list_goes_on_until_a_page_is_empty() -> None:
    found, seen = run(list_all, page(*uids(3)), page(*uids(3, 3)), page(*uids(1, 6)), page(), page=3)
    assert found == uids(7)
    assert [dict(one.query)["offset"] for one in seen] == ["0", "3", "6", "7"]
    assert {dict(one.query)["limit"] for one in seen} == {"3"}
    assert {one.path for one in seen} == {f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances"}


def test_a_server_that_gives_less_than_asked_for_is_asked_on() -> None:
    assert run(list_all, page(*uids(2)), page(*uids(2, 2)), page(), page=500)[0] == uids(4)


def test_an_instance_that_comes_twice_is_told_once() -> None:
    assert run(list_all, page(*uids(3), *uids(1)), page(*uids(3, 2)), page(), page=4)[0] == uids(5)


@pytest.mark.parametrize("count", [2, 7])
def test_a_server_that_ignores_the_offset_is_not_asked_for_ever(count: int) -> None:
    found, seen = run(list_all, page(*uids(count)), page=5)
    assert found == uids(count)
    assert len(seen) == 2


def test_a_full_page_again_and_again_is_not_taken_for_all_there_is() -> None:
    error, seen = failing(list_all, page(*uids(5)), page=5)
    assert isinstance(error, PacsMalformed)
    assert (error.reason, len(seen)) == ("paging", 2)


def test_rows_tell_what_there_is() -> None:
    row = dicom_json(
        t0020000D=["1.2"],
        t0020000E=["1.3 "],
        t00080060=["MR"],
        t00080008=["ORIGINAL", None, "AXIAL"],
        t00201209=["12"],
        t00200011=["x"],
    )
    [found], seen = run(lambda web: web.series({"Modality": "MR", "StudyDate": "20260101-"}, 5, 10), as_json([row]))
    assert (found.study, found.series, found.modality, found.instances, found.number) == ("1.2", "1.3", "MR", 12, None)
    assert found.image_type == ("ORIGINAL", "", "AXIAL")
    assert found.station == found.body_part == ""
    asked = seen[0].query
    assert {("Modality", "MR"), ("StudyDate", "20260101-"), ("limit", "5"), ("offset", "10")} <= set(asked)
    assert ("includefield", "NumberOfSeriesRelatedInstances") in asked
    assert "json" in seen[0].headers["accept"]


def test_frames_may_be_text_and_are_one_where_none_are_told() -> None:
    many = instance("1.1") | dicom_json(t00280008=["30"], t00280010=[512], t00280011=[256], t00200013=["4"])

    async def rows(web: DicomWeb) -> list[tuple[int | None, ...]]:
        found = [row async for row in web.instances(STUDY, SERIES)]
        return [(row.number, row.frames, row.rows, row.columns) for row in found]

    found, _ = run(rows, as_json([many, instance("1.2")]), page())
    assert found == [(4, 30, 512, 256), (None, 1, None, None)]


@pytest.mark.parametrize("bad", ["", "1.2/../../admin", "1.2?x", "é", "1" * 65])
def test_only_uids_get_into_a_path(bad: str, tmp_path: Path) -> None:
    for work in (
        lambda web: collect(web.instances(bad, SERIES)),
        lambda web: collect(web.retrieve_series(STUDY, bad, tmp_path)),
        lambda web: web.retrieve(STUDY, SERIES, bad, tmp_path / "one"),
        lambda web: web.store(bad, []),
    ):
        with pytest.raises(ValueError, match="UID"):
            run(work, page())


def test_a_series_is_asked_for_as_stored_at_the_configured_address(tmp_path: Path) -> None:
    paths, seen = run(lambda web: collect(web.retrieve_series(STUDY, SERIES, tmp_path)), as_parts(b"one", b"two"))
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    assert [one.path for one in seen] == [f"/dicom-web/studies/{STUDY}/series/{SERIES}"]
    assert seen[0].headers["accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert seen[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("framed", [True, False])
def test_a_series_that_breaks_off_yields_whole_instances_only(framed: bool, tmp_path: Path) -> None:
    whole = as_parts(b"one" * 100, b"two" * 100)
    for sent in range(0, len(whole.body) - 2, 37):  # the last two bytes are behind the closing delimiter
        folder = tmp_path / f"{sent}"
        folder.mkdir()
        got: list[bytes] = []

        async def work(web: DicomWeb, folder: Path = folder, got: list[bytes] = got) -> None:
            async for path in web.retrieve_series(STUDY, SERIES, folder):
                got.append(path.read_bytes())

        error, _ = failing(work, as_parts(b"one" * 100, b"two" * 100, sent=sent, end="close", framed=framed))
        assert isinstance(error, PacsUnavailable)
        assert error.reason == "dropped"
        assert got == [b"one" * 100, b"two" * 100][: len(got)]
        assert sorted(path.name for path in folder.iterdir()) == [f"{index:06}.dcm" for index in range(len(got))]


def test_what_the_caller_does_between_two_instances_is_not_the_pacs_time(tmp_path: Path) -> None:
    async def work(web: DicomWeb) -> int:
        count = 0
        async for _ in web.retrieve_series(STUDY, SERIES, tmp_path):
            count += 1
            await asyncio.sleep(0.15)
        return count

    assert run(work, as_parts(b"one", b"two", b"three"), total_s=0.3)[0] == 3


def test_the_opening_of_a_series_is_tried_again_and_its_rest_is_not(tmp_path: Path) -> None:
    broken = as_parts(b"one", b"two" * 50, sent=130, end="close")
    error, seen = failing(
        lambda web: collect(web.retrieve_series(STUDY, SERIES, tmp_path)), Answer(503), broken, retries=3
    )
    assert (error.reason, len(seen)) == ("dropped", 2)


def test_one_instance_is_fetched_again_from_its_beginning(tmp_path: Path) -> None:
    broken, path = as_parts(b"one" * 50, sent=100, end="close"), tmp_path / "one"
    _, seen = run(lambda web: web.retrieve(STUDY, SERIES, INSTANCE, path), broken, as_parts(b"one" * 50), retries=1)
    assert len(seen) == 2
    assert path.read_bytes() == b"one" * 50
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"DICM", {"Content-Type": "application/dicom"}),
        Answer(200, b"--B--", {"Content-Type": "multipart/related"}),
        Answer(200, b"<xml/>"),
        as_parts(),
        as_parts(b"one", b"two"),
        as_parts(b"x" * 101),
    ],
    ids=["single part", "no boundary", "no type", "no part", "two parts", "too large"],
)
def test_what_is_not_one_instance_is_malformed(answer: Answer, tmp_path: Path) -> None:
    error, _ = failing(
        lambda web: web.retrieve(STUDY, SERIES, INSTANCE, tmp_path / "one"), answer, instance_bytes=100, retries=2
    )
    assert isinstance(error, PacsMalformed)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five files of ten bytes."""
    paths = [tmp_path / f"{index}" for index in range(5)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([48 + index]) * 10)
    return paths


def sent(seen: Seen) -> list[bytes]:
    """The parts of a request, whose length is the one it told."""
    assert int(seen.headers["content-length"]) == len(seen.body)
    reader = Reader(boundary_of(seen.headers["content-type"]), 1000)
    parts = [event for event in reader.feed(seen.body) if isinstance(event, bytes)]
    reader.finish()
    return parts


@pytest.mark.parametrize("status", [200, 202, 400, 409, 500])
def test_both_sequences_count_whatever_the_status(status: int, files: list[Path]) -> None:
    told = stow(["1.1", "1.2"], {"1.3": 0x0110, "1.4": 0xA700, "1.5": None})
    result, seen = run(lambda web: web.store(STUDY, files), as_json(told, status))
    assert result == Stored({"1.1", "1.2"}, {"1.3": Failure(0x0110), "1.4": Failure(0xA700), "1.5": Failure(None)})
    assert (seen[0].method, seen[0].path) == ("POST", f"/dicom-web/studies/{STUDY}")
    assert [failure.temporary for failure in result.failed.values()] == [False, True, False]


def test_reasons_are_told_in_words() -> None:
    codes = (0x0110, 0x0122, 0xA701, 0xA900, 0xC000, 0xC122, 0x1234, None)
    assert [str(Failure(code)) for code in codes] == [
        "processing failure",
        "SOP class not supported",
        "out of resources",
        "data set does not match SOP class",
        "cannot understand",
        "transfer syntax not supported",
        "failure 0x1234",
        "no reason told",
    ]


def test_an_instance_in_both_sequences_has_failed(files: list[Path]) -> None:
    result, _ = run(lambda web: web.store(STUDY, files), as_json(stow(["1.1", "1.2"], {"1.2": 1})))
    assert result == Stored({"1.1"}, {"1.2": Failure(1)})


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200),
        Answer(204),
        Answer(200, b"{"),
        Answer(202, b"<NativeDicomModel/>", {"Content-Type": "application/dicom+xml"}),
        as_json({}),
        as_json([]),
        as_json(stow()),
        as_json({"00081199": {"Value": 7}}),
    ],
)
def test_success_without_a_word_is_no_success(answer: Answer, files: list[Path]) -> None:
    assert isinstance(failing(lambda web: web.store(STUDY, files), answer, retries=2)[0], PacsMalformed)


def test_the_body_is_made_anew_for_each_attempt(files: list[Path]) -> None:
    good = as_json(stow(["1.1"]))
    lost = Answer(200, b"{}", sent=0, end="close")
    _, seen = run(lambda web: web.store(STUDY, files), Answer(503), lost, good, retries=2)
    assert [sent(one) for one in seen] == [[path.read_bytes() for path in files]] * 3


def test_a_file_that_changes_while_it_is_sent_is_an_error_of_the_disk(files: list[Path]) -> None:
    async def work(web: DicomWeb) -> None:
        sending = asyncio.create_task(web.store(STUDY, files[:1]))
        await asyncio.sleep(0)
        files[0].write_bytes(b"")
        with pytest.raises(OSError, match="shorter"):
            await sending

    run(work, Answer(200), retries=2)


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({"stow_items": 2}, [2, 2, 1]),
        ({"stow_bytes": 35}, [3, 2]),
        ({"stow_bytes": 9}, [1, 1, 1, 1, 1]),
        ({"stow_items": 4, "stow_bytes": 20}, [2, 2, 1]),
        ({}, [5]),
    ],
)
def test_batches_keep_to_both_limits(limits: dict[str, int], sizes: list[int], files: list[Path]) -> None:
    answers = [as_json(stow([f"1.{index}"])) for index in range(len(sizes))]
    result, seen = run(lambda web: web.store(STUDY, files), *answers, **limits)
    assert [len(sent(one)) for one in seen] == sizes
    assert [part for one in seen for part in sent(one)] == [path.read_bytes() for path in files]
    assert result.stored == {f"1.{index}" for index in range(len(sizes))}


def test_nothing_to_store_is_no_call() -> None:
    assert list(batches([], 16, 100)) == []
    assert run(lambda web: web.store(STUDY, []), Answer(500)) == (Stored(), [])


def test_a_batch_too_large_for_somebody_goes_in_halves(files: list[Path]) -> None:
    refusal = Answer(413)
    answers = [refusal, refusal, *(as_json(stow([f"1.{index}"])) for index in range(3))]
    result, seen = run(lambda web: web.store(STUDY, files), *answers)
    assert [len(sent(one)) for one in seen] == [5, 2, 1, 1, 3]
    assert result.stored == {"1.0", "1.1", "1.2"}


def test_one_instance_too_large_is_refused(files: list[Path]) -> None:
    error, _ = failing(lambda web: web.store(STUDY, files[:1]), Answer(413))
    assert isinstance(error, PacsRefused)
    assert error.reason == "too-large"
