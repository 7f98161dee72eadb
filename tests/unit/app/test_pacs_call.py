"""A PACS that fails in every way, as its callers are told of it."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pacs import call
from app.pacs.call import open_client
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsDenied, PacsError, PacsGone, PacsMalformed, PacsRefused, PacsUnavailable
from app.pacs.orthanc import Orthanc
from app.pacs.peer import Peer
from tests.scripted_pacs import SILENCE, Answer, ScriptedPacs, Seen, as_json, as_parts, instance

T = TypeVar("T")
STUDY, SERIES, INSTANCE = "1.2.3", "1.2.4", "1.2.5"
GOOD = as_json([])
Work = Callable[[DicomWeb], Awaitable[T]]


def run(work: Work[T], *answers: Answer, observe: Any = None, **settings: Any) -> tuple[T, list[Seen]]:
    """What `work` does at a PACS that gives these answers, and the requests that it got."""

    async def go() -> tuple[T, list[Seen]]:
        async with ScriptedPacs(*answers) as pacs, open_client(pacs.peer(**settings)) as client:
            return await work(DicomWeb(pacs.peer(**settings), client, observe)), pacs.seen

    return asyncio.run(go())


def failing(work: Work[Any], *answers: Answer, **settings: Any) -> tuple[PacsError, list[Seen]]:
    """How it fails, and the requests."""

    async def go() -> tuple[PacsError, list[Seen]]:
        async with ScriptedPacs(*answers) as pacs, open_client(pacs.peer(**settings)) as client:
            try:
                await work(DicomWeb(pacs.peer(**settings), client))
            except PacsError as error:
                return error, pacs.seen
        pytest.fail("there was no error")

    return asyncio.run(go())


async def reach(web: DicomWeb) -> None:
    await web.reachable()


async def list_all(web: DicomWeb) -> list[str]:
    return [row.sop_instance async for row in web.instances(STUDY, SERIES)]


async def collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


def at(peer: Peer) -> PacsError:
    """How reaching `peer` fails."""

    async def go() -> PacsError:
        async with open_client(peer) as client:
            with pytest.raises(PacsError) as caught:
                await DicomWeb(peer, client).reachable()
            return caught.value

    return asyncio.run(go())


def test_a_refused_connection_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = at(Peer(url=f"http://127.0.0.1:{unused.getsockname()[1]}", retries=1, retry_s=0.001))
    assert isinstance(error, PacsUnavailable)
    assert error.reason == "connect"


def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert at(Peer(url="http://pacs.invalid", retries=0)).reason == "dns"


def test_a_connection_that_does_not_come_about_is_a_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]  # fill the backlog, so that nobody is let in any more
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        error = at(Peer(url=f"http://127.0.0.1:{full.getsockname()[1]}", retries=3, connect_s=0.1))
        for one in waiting:
            one.close()
    assert error.reason == "timeout"


@pytest.mark.parametrize(
    "answer",
    [
        SILENCE,
        as_json([instance(INSTANCE)]),
        Answer(200, b"[" + b" " * 1000 + b"]", sent=10, end="stall"),
    ],
    ids=["no answer", "answers", "stalled body"],
)
def test_silence_ends_by_the_time_between_two_pieces(answer: Answer) -> None:
    if answer.body and not answer.end:
        run(reach, answer, read_s=5)
        return
    error, seen = failing(reach, answer, read_s=0.05, retries=3)
    assert isinstance(error, PacsUnavailable)
    assert (error.reason, len(seen)) == ("timeout", 1)  # what was waited for once is not waited for again at once


def test_a_trickle_ends_by_the_total_time(tmp_path: Path) -> None:
    trickle = Answer(200, b"[" + b" " * 10**6, sent=1, end="trickle")
    assert failing(reach, trickle, read_s=5, total_s=0.1)[0].reason == "timeout"
    part = as_parts(bytes(10**6), sent=100, end="trickle")
    error, _ = failing(lambda web: collect(web.retrieve_series(STUDY, SERIES, tmp_path)), part, total_s=0.1)
    assert error.reason == "timeout"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stops_reading_ends_by_the_total_time(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(32 * 1024**2))  # more than sockets hold

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async def go() -> PacsError:
        server = await asyncio.start_server(deaf, "127.0.0.1", 0)
        peer = Peer(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", total_s=0.2, retries=3)
        async with open_client(peer) as client:
            with pytest.raises(PacsUnavailable) as caught:
                await DicomWeb(peer, client).store(STUDY, [tmp_path / "large"])
        over.set()
        server.close()
        return caught.value

    over = asyncio.Event()
    assert asyncio.run(go()).reason == "timeout"


def test_a_cancelled_call_leaves_no_file(tmp_path: Path) -> None:
    async def work(web: DicomWeb) -> None:
        task = asyncio.create_task(web.retrieve(STUDY, SERIES, INSTANCE, tmp_path / "one"))
        while not list(tmp_path.iterdir()):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work, as_parts(bytes(1000), sent=100, end="stall"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (301, PacsRefused, "redirect"),
        (307, PacsRefused, "redirect"),
        (400, PacsRefused, "refused"),
        (401, PacsDenied, "denied"),
        (403, PacsDenied, "denied"),
        (404, PacsGone, "gone"),
        (406, PacsRefused, "refused"),
        (409, PacsRefused, "conflict"),
        (410, PacsGone, "gone"),
        (413, PacsRefused, "too-large"),
        (429, PacsUnavailable, "busy"),
        (500, PacsUnavailable, "error"),
        (501, PacsRefused, "refused"),
        (503, PacsUnavailable, "busy"),
        (507, PacsUnavailable, "error"),
    ],
)
def test_every_status_has_its_error(status: int, kind: type[PacsError], reason: str, tmp_path: Path) -> None:
    answer = Answer(status, b"Doe^Jane", {"Location": "http://127.0.0.1:1/elsewhere"})
    (tmp_path / "file").write_bytes(b"DICM")
    calls: list[Work[Any]] = [
        reach,
        lambda web: web.retrieve(STUDY, SERIES, INSTANCE, tmp_path / "one"),
        lambda web: collect(web.retrieve_series(STUDY, SERIES, tmp_path)),
        lambda web: web.store(STUDY, [tmp_path / "file"]),
    ]
    for work in calls:
        error, seen = failing(work, answer)
        assert (type(error), error.reason, error.status, len(seen)) == (kind, reason, status, 1)
        assert "Doe" not in str(error)
        assert STUDY not in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 301])
def test_what_will_not_change_is_not_tried_again(status: int) -> None:
    assert len(failing(reach, Answer(status), retries=5)[1]) == 1


LOST = Answer(200, b"[]", sent=0, end="close")


@pytest.mark.parametrize("bad", [Answer(503), Answer(429), Answer(502), Answer(500), LOST])
def test_what_may_pass_is_tried_again(bad: Answer) -> None:
    assert len(run(reach, bad, bad, GOOD, retries=2)[1]) == 3
    error, seen = failing(reach, bad, bad, bad, GOOD, retries=2)
    assert isinstance(error, PacsUnavailable)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("99999999999", call.LONGEST_S),
        (format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True), 0),
        (format_datetime(datetime.now(UTC) + timedelta(days=9), usegmt=True), call.LONGEST_S),
        ("-5", None),
        ("soon", None),
        ("", None),
    ],
    # A date in a name would differ from one process of a parallel run to the next.
    ids=["now", "seconds", "too-long", "past-date", "far-date", "negative", "words", "empty"],
)
def test_retry_after_is_understood(text: str, seconds: float | None) -> None:
    error, _ = failing(reach, Answer(503, headers={"Retry-After": text}))
    assert isinstance(error, PacsUnavailable)
    assert error.retry_after_s == seconds


@given(text=st.text(st.characters(max_codepoint=255)) | st.from_regex(r"[A-Za-z0-9:, +-]{0,40}", fullmatch=True))
def test_any_retry_after_is_seconds_or_nothing(text: str) -> None:
    response = httpx.Response(503, headers=[(b"Retry-After", text.encode("latin-1"))])
    seconds = call.retry_after(response)
    assert seconds is None or 0 <= seconds <= call.LONGEST_S


def test_retry_after_may_be_a_date() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=1000), usegmt=True)
    error, _ = failing(reach, Answer(429, headers={"Retry-After": moment}))
    assert isinstance(error, PacsUnavailable)
    assert error.retry_after_s is not None
    assert 900 < error.retry_after_s <= 1000


def test_a_long_retry_after_keeps_other_calls_away_too() -> None:
    async def work(web: DicomWeb) -> PacsUnavailable:
        for _ in range(2):
            with pytest.raises(PacsUnavailable) as caught:
                await web.reachable()
        return caught.value

    error, seen = run(work, Answer(503, headers={"Retry-After": "1000"}), GOOD, retries=3)
    assert len(seen) == 1
    assert error.retry_after_s is not None
    assert 900 < error.retry_after_s <= 1000


def test_a_short_retry_after_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        monkeypatch.setattr(call.time, "monotonic", lambda: now + sum(slept))
        await real(0)

    now = call.time.monotonic()
    monkeypatch.setattr(call.asyncio, "sleep", sleep)
    _, seen = run(reach, Answer(503, headers={"Retry-After": "4"}), GOOD, retries=1)
    assert len(seen) == 2
    assert 3 < sum(slept) < 5


def test_pauses_double_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(call.asyncio, "sleep", sleep)
    failing(reach, Answer(503), retries=4, retry_s=1)
    assert [limit / 2 <= pause <= limit for pause, limit in zip(slept, (1, 2, 4, 8), strict=True)] == [True] * 4
    assert len(set(slept)) == 4


def test_a_redirect_leads_nowhere() -> None:
    async def go() -> None:
        async with ScriptedPacs(GOOD) as elsewhere:
            location = {"Location": f"http://127.0.0.1:{elsewhere.port}/studies"}
            async with ScriptedPacs(Answer(302, headers=location)) as pacs, open_client(pacs.peer()) as client:
                with pytest.raises(PacsRefused, match="redirect"):
                    await DicomWeb(pacs.peer(), client).reachable()
            assert elsewhere.seen == []

    asyncio.run(go())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b""),
        Answer(200, b"<?xml version='1.0'?><NativeDicomModel/>", {"Content-Type": "application/dicom+xml"}),
        Answer(200, b'[{"0020000D"'),
        Answer(200, b"[" * 100_000),
        Answer(200, b'{"a": 1}'),
        Answer(200, b"[1]"),
        Answer(200, b'[{"00080018": {"Value": "1.2"}}]'),
        Answer(200, b'[{"00080018": {"Value": ["../../studies"]}}]'),
        Answer(200, gzip.compress(b"[]"), {"Content-Encoding": "gzip"}),
        Answer(200, b"\xff[]"),
    ],
    ids=["empty", "xml", "cut", "nested", "object", "number", "no list", "no uid", "compressed", "no text"],
)
def test_an_answer_that_is_no_list_is_malformed(answer: Answer) -> None:
    assert isinstance(failing(list_all, answer, retries=2)[0], PacsMalformed)


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "ANSWER_BYTES", 1000)
    error, _ = failing(reach, Answer(200, b"[" + b" " * 2000 + b"]"))
    assert (type(error), error.reason) == (PacsMalformed, "too-large")


def test_calls_are_observed_without_names(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    def observe(verb: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        told.append((verb, outcome))

    async def work(web: DicomWeb) -> None:
        await web.reachable()
        for _ in range(3):
            with pytest.raises(PacsError):
                await web.retrieve(STUDY, SERIES, INSTANCE, tmp_path / "one")
        series = web.retrieve_series(STUDY, SERIES, tmp_path)
        await anext(series)
        await series.aclose()

    cut = as_parts(b"one", sent=50, end="close")
    run(work, GOOD, Answer(404), cut, Answer(200, b"x"), as_parts(b"1"), observe=observe)
    assert told == [
        ("qido", "2xx"),
        ("wado", "4xx"),
        ("wado", "dropped"),
        ("wado", "media-type"),
        ("wado", "cancelled"),
    ]


def test_credentials_go_with_every_call_and_are_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")

    async def work(web: DicomWeb) -> None:
        await web.reachable()
        file.write_text("second")
        await web.reachable()
        file.unlink()
        with pytest.raises(PacsDenied, match="credentials"):
            await web.reachable()

    _, seen = run(work, GOOD, token_file=file)
    assert [one.headers["authorization"] for one in seen] == ["Bearer first", "Bearer second"]
    _, seen = run(reach, GOOD, user="Jürgen", password="pa:ss")
    assert seen[0].headers["authorization"] == "Basic SsO8cmdlbjpwYTpzcw=="
    assert "authorization" not in run(reach, GOOD)[1][0].headers


@pytest.mark.parametrize("content", [b"", b"two\nlines", b"\xff\xfe", b"x" * 100_000, "tökén".encode()])
def test_a_file_that_holds_no_credentials_is_an_operators_business(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    error, seen = failing(reach, GOOD, token_file=tmp_path / "token")
    assert (type(error), error.reason, seen) == (PacsDenied, "credentials", [])


PROGRAM = """
import asyncio, sys
from pathlib import Path
from app import log
from app.pacs.call import open_client
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsError
from app.pacs.peer import Peer

async def main():
    log.configure("debug")
    peer = Peer(url=sys.argv[1], user="someone", password="secret-word", retries=0)
    async with open_client(peer) as client:
        try:
            await DicomWeb(peer, client).retrieve("1.2.33333", "1.2.44444", "1.2.55555", Path("one"))
        except PacsError as error:
            log.logger.exception("pacs", exc_info=error)
    log.event("end", peer=repr(peer))

asyncio.run(main())
"""


def test_neither_credentials_nor_uids_are_logged() -> None:
    async def go() -> tuple[str, list[Seen]]:
        async with ScriptedPacs(Answer(404)) as pacs:
            program = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, pacs.peer().url, stderr=asyncio.subprocess.PIPE
            )
            _, logged = await program.communicate()
            return logged.decode(), pacs.seen

    logged, seen = asyncio.run(go())
    assert "1.2.55555" in seen[0].path
    assert "authorization" in seen[0].headers
    assert '"event": "end"' in logged
    for secret in ("secret-word", "33333", "44444", "55555", seen[0].headers["authorization"].split()[1]):
        assert secret not in logged


def test_the_environment_is_not_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    run(reach, GOOD)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pacs -addext subjectAltName=IP:127.0.0.1"
    try:
        subprocess.run(
            ["openssl", *words.split(), "-keyout", folder / "key", "-out", folder / "crt"],
            capture_output=True,
            check=True,
        )
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    (folder / "both").write_bytes((folder / "key").read_bytes() + (folder / "crt").read_bytes())
    return folder


def test_certificates_are_verified(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate / "both")

    async def go() -> None:
        async with ScriptedPacs(GOOD, tls=tls) as pacs:
            async with open_client(pacs.peer()) as client:
                with pytest.raises(PacsUnavailable, match="certificate"):
                    await DicomWeb(pacs.peer(), client).reachable()
            trusting = pacs.peer(ca_file=certificate / "crt")
            async with open_client(trusting) as client:
                await DicomWeb(trusting, client).reachable()
            assert len(pacs.seen) == 1

    asyncio.run(go())


def test_orthancs_answers_are_not_believed_blindly() -> None:
    async def go(answer: Answer, work: Callable[[Orthanc], Awaitable[Any]]) -> None:
        async with ScriptedPacs(answer) as pacs:
            peer = pacs.peer(orthanc=pacs.peer().url)
            async with open_client(peer) as client:
                with pytest.raises(PacsMalformed):
                    await work(Orthanc(peer, client))

    for value in ([], {}, {"Changes": [{"Seq": 1}], "Last": 1, "Done": True}, {"Changes": 1, "Last": 1, "Done": True}):
        asyncio.run(go(as_json(value), lambda api: api.changes(0, 10)))
    identifier = "-".join(["01234567"] * 5)
    for value in ([], {"Instances": [identifier]}):
        asyncio.run(go(as_json(value), lambda api: api.series(identifier)))
