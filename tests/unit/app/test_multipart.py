"""The multipart reader: any pieces, any content, every truncation."""

from __future__ import annotations

import asyncio
import email
import email.policy
import itertools
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pacs.errors import PacsMalformed, PacsUnavailable
from app.pacs.multipart import MARGIN_BYTES, Body, End, Head, Reader, boundary_of, save_parts

BOUNDARY = b"B"
MOST = 10_000
DELIMITER = re.compile(rb"\r\n--B(--|[ \t]{0,64}\r\n)")
FRAGMENTS = [b"\r\n", b"\r", b"\n", b"--", b"-", b"B", b"\r\n--B", b"\r\n--Bx", b"--B--", b" ", b"\t"]
ANYTHING = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), max_size=8).map(b"".join)
CONTENT = ANYTHING.filter(lambda data: DELIMITER.split(data + b"\r\n--B--")[0] == data)  # ends where it should
CUTS = st.lists(st.integers(0, 400), max_size=8)


def body_of(contents: Iterable[bytes], sized: bool = False, before: bytes = b"", after: bytes = b"\r\n") -> bytes:
    """A body written by the letter of RFC 2046."""
    body = before
    for data in contents:
        length = b"Content-Length: %d\r\n" % len(data) if sized else b""
        body += b"\r\n--B\r\nContent-Type: application/dicom\r\n" + length + b"\r\n" + data
    return body.removeprefix(b"\r\n") + b"\r\n--B--" + after


def pieces_of(body: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(places)]


def read(pieces: Iterable[bytes], reader: Reader | None = None) -> list[bytes]:
    """The contents of the parts that were told as complete."""
    reader = reader or Reader(BOUNDARY, MOST)
    complete, current = [], b""
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, Head):
                current = b""
            elif event is End.END:
                complete.append(current)
            else:
                assert isinstance(event, bytes)
                current += event
    return complete


@given(contents=st.lists(CONTENT, max_size=4), cuts=CUTS)
def test_parts_come_whole_however_the_body_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    reader = Reader(BOUNDARY, MOST)
    assert read(pieces_of(body_of(contents), cuts), reader) == contents
    reader.finish()


@given(contents=st.lists(ANYTHING, max_size=4), cuts=CUTS)
def test_a_part_that_tells_its_length_may_hold_delimiters(contents: list[bytes], cuts: list[int]) -> None:
    reader = Reader(BOUNDARY, MOST)
    assert read(pieces_of(body_of(contents, sized=True), cuts), reader) == contents
    reader.finish()


@given(contents=st.lists(CONTENT, min_size=1, max_size=3), sized=st.booleans(), cuts=CUTS)
def test_every_truncation_is_an_error_and_yields_no_half_part(
    contents: list[bytes], sized: bool, cuts: list[int]
) -> None:
    body = body_of(contents, sized, after=b"")
    for end in range(len(body)):
        reader = Reader(BOUNDARY, MOST)
        complete = read(pieces_of(body[:end], cuts), reader)
        assert complete == contents[: len(complete)]
        with pytest.raises(PacsUnavailable, match="dropped"):
            reader.finish()


def test_every_single_byte_apart_is_read_the_same() -> None:
    contents = [b"", b"\r\n--", b"\r\n--Bx", bytes(range(256))]
    body = body_of(contents, before=b"a preamble", after=b"  an epilogue")
    assert read([body[i : i + 1] for i in range(len(body))]) == contents


def test_blanks_behind_a_delimiter_are_allowed_but_not_without_end() -> None:
    assert read([b"--B \t \r\n\r\none\r\n--B--"]) == [b"one"]
    data = b"\r\n--B" + b" " * 1000 + b"\r\n"
    assert read(pieces_of(body_of([data]), [50, 60, 70, 300])) == [data]


def test_a_part_without_headers_is_a_part() -> None:
    assert read([b"--B\r\n", b"\r", b"\none\r\n--B--"]) == [b"one"]


@pytest.mark.parametrize("sized", [False, True])
def test_a_part_over_the_limit_is_an_error(sized: bool) -> None:
    assert read([body_of([b"x" * 100], sized)], Reader(BOUNDARY, 100)) == [b"x" * 100]
    with pytest.raises(PacsMalformed, match="a part is longer than 99"):
        read([body_of([b"x" * 100], sized)], Reader(BOUNDARY, 99))


def test_a_long_part_is_refused_before_it_is_there() -> None:
    with pytest.raises(PacsMalformed, match="longer than 100"):
        read([b"--B\r\nContent-Length: 101\r\n\r\n"], Reader(BOUNDARY, 100))


@pytest.mark.parametrize("ended", [False, True])
def test_a_header_over_the_limit_is_an_error(ended: bool) -> None:
    header = b"--B\r\nX: " + b"x" * 200 + (b"\r\n\r\n" if ended else b"")
    with pytest.raises(PacsMalformed, match="header"):
        read(pieces_of(header, [20, 40, 60]), Reader(BOUNDARY, MOST, header_bytes=150))


def test_bytes_outside_the_parts_are_bounded() -> None:
    for body in (b"x" * (MARGIN_BYTES + 100), b"--B--" + b"x" * (MARGIN_BYTES + 100)):
        with pytest.raises(PacsMalformed, match="outside"):
            read([body])


@pytest.mark.parametrize(
    "body",
    [
        b"--B\r\nContent-Length: 3\r\n\r\nfour\r\n--B--",
        b"--B\r\nContent-Length: -3\r\n\r\none\r\n--B--",
        b"--B\r\nContent-Length: 99999999999999999999\r\n\r\none\r\n--B--",
        b"--B\r\nno colon\r\n\r\none\r\n--B--",
        b"--B\r\n: no name\r\n\r\none\r\n--B--",
    ],
)
def test_a_header_that_lies_is_an_error(body: bytes) -> None:
    with pytest.raises(PacsMalformed):
        read([body])


def test_a_length_that_is_too_great_never_ends_a_part() -> None:
    reader = Reader(BOUNDARY, MOST)
    assert read([b"--B\r\nContent-Length: 300\r\n\r\none\r\n--B--\r\n"], reader) == []
    with pytest.raises(PacsUnavailable):
        reader.finish()


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('Multipart/Related; Boundary="a b?c"; type="application/dicom"', b"a b?c"),
        ('multipart/related;boundary=a-b-c;type="application/dicom";transfer-syntax=1.2', b"a-b-c"),
    ],
)
def test_the_boundary_is_found(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/dicom",
        "multipart/form-data; boundary=abc",
        "multipart/related",
        'multipart/related; boundary=""',
        "multipart/related; boundary=" + "x" * 71,
        'multipart/related; boundary="ä"',
        'multipart/related; boundary="<>"',
    ],
)
def test_no_boundary_is_an_error(content_type: str) -> None:
    with pytest.raises(PacsMalformed):
        boundary_of(content_type)


async def streamed(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def save(pieces: Iterable[bytes], folder: Path) -> list[Path]:
    async def run() -> list[Path]:
        paths = (folder / f"{index}" for index in range(100))
        return [path async for path in save_parts(streamed(pieces), Reader(BOUNDARY, 10**8), paths)]

    return asyncio.run(run())


def test_parts_are_saved_whole(tmp_path: Path) -> None:
    contents = [b"", b"one", bytes(3 * 1024**2 + 1)]
    saved = save(pieces_of(body_of(contents), [100, 200, 1_500_000]), tmp_path)
    assert [path.read_bytes() for path in saved] == contents
    assert sorted(tmp_path.iterdir()) == saved


@pytest.mark.parametrize("sized", [False, True])
def test_a_large_part_is_not_held_in_memory(sized: bool, tmp_path: Path) -> None:
    piece = bytes(65536)
    length = b"Content-Length: %d\r\n" % (len(piece) * 512) if sized else b""
    whole = itertools.chain([b"--B\r\n" + length + b"\r\n"], itertools.repeat(piece, 512), [b"\r\n--B--"])
    tracemalloc.start()
    saved = save(whole, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [path.stat().st_size for path in saved] == [len(piece) * 512]
    assert peak < 8 * 1024**2


def test_a_half_part_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(PacsUnavailable):
        save([body_of([b"one", b"two"])[:-8]], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


@given(contents=st.lists(ANYTHING, min_size=1, max_size=4))
def test_what_is_written_can_be_read_as_often_as_it_is_asked_for(
    contents: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("written")
    files = [folder / str(index) for index in range(len(contents))]
    for path, data in zip(files, contents, strict=True):
        path.write_bytes(data)
    body = Body(files)

    async def run() -> bytes:
        return b"".join([piece async for piece in body])

    first, second = asyncio.run(run()), asyncio.run(run())
    assert first == second
    assert len(first) == int(body.headers["Content-Length"])
    kind = body.headers["Content-Type"]
    assert read([first], Reader(boundary_of(kind), MOST)) == contents
    message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + first, policy=email.policy.HTTP)
    assert len(message.get_payload()) == len(contents)  # an independent reader counts the same parts
