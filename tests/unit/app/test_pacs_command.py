"""`medrestore pacs` against a scripted service: what is printed, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

import medrestore

FEED = {"read_s_ago": 2.0, "lag": 7, "problem": None}
PEER = {"reachable": True, "authorised": True, "reason": None, "jobs": {"waiting": 3}, "oldest_waiting_s": 61.0}
DENIED = PEER | {"authorised": False, "reason": "denied", "jobs": {}, "oldest_waiting_s": None, "feed": None}
WELL = {"jobs_problem": None, "rules_problem": None, "dimse_problem": None}
TAKEN = {
    "study": "1.2",
    "series": "1.2.3",
    "instances": 30,
    "tags": {"Modality": "CT", "SeriesDescription": "Lung\x1b[31m\nred"},
    "decision": "taken",
    "route": "chest",
    "reason": "taken by chest",
    "unmet": {},
}
LEFT = TAKEN | {"series": "1.2.4", "decision": "ours", "route": None, "reason": "made by MedRestore"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command against a scripted service; gives status, stdout, stderr and the requests."""
    monkeypatch.delenv("MEDRESTORE_KEY", raising=False)
    monkeypatch.setattr("app.pacs.command.PAUSE_S", 0.0)
    client = httpx.Client

    def call(answer: Callable[[httpx.Request], httpx.Response], *words: str) -> tuple[Any, ...]:
        seen: list[httpx.Request] = []

        def noted(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return answer(request)

        monkeypatch.setattr("app.pacs.command.httpx.Client", partial(client, transport=httpx.MockTransport(noted)))
        status = medrestore.main(["pacs", *words])
        return status, *capsys.readouterr(), seen

    return call


def said(content: Any, status: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, json=content)


def test_status_is_a_table_and_fails_where_a_pacs_does(run) -> None:
    answer = {"pacs": {"main": PEER | {"feed": FEED}}, **WELL}
    status, out, err, seen = run(said(answer), "status", "--key", "secret")
    assert (status, err) == (0, "")
    assert out.splitlines()[1].split() == ["main", "yes", "2", "s", "ago", "7"]
    assert "main  waiting  3" in out
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert seen[0].url.path == "/v1/pacs/status"
    status, out, _, _ = run(said({"pacs": {"main": DENIED}, **WELL, "rules_problem": "line 3"}), "status")
    assert status == 1
    assert "NO: denied" in out
    assert "rules out of order: line 3" in out
    assert run(said(answer | {"dimse_problem": "the port"}), "status")[0] == 1


def test_a_dry_run_tells_routes_and_reasons_without_control_characters(run) -> None:
    report = {
        "problem": None,
        "routes": ["chest"],
        "pacs": [{"pacs": "main", "problem": None, "series": [TAKEN, LEFT]}],
    }
    status, out, err, seen = run(said(report), "route", "--dry-run", "--pacs", "main", "--limit", "5")
    assert (status, err) == (0, "1 of 2 series would be taken\n")
    assert dict(seen[0].url.params) == {"pacs": "main", "limit": "5"}
    assert "\x1b" not in out
    assert len(out.splitlines()) == 3
    assert "Lung?[31m?red" in out
    assert out.splitlines()[2].split()[1] == "(ours)"
    assert out.splitlines()[2].endswith("made by MedRestore")
    assert run(said(report | {"problem": "line 3"}), "route", "--dry-run")[0] == 1


def test_the_answer_itself_is_to_be_had(run) -> None:
    answer = {"pacs": {"main": DENIED}, **WELL}
    assert json.loads(run(said(answer), "status", "--json")[1]) == answer


def test_submit_sends_what_was_given_and_nothing_else(run) -> None:
    job = {"id": "0123", "state": "queued", "instances": {"total": 0}}
    words = ["--study", "1.2", "--series", "1.2.3", "--operation", "superresolve", "--scale", "2"]
    status, out, _, seen = run(said(job, 202), "submit", *words)
    assert (status, out) == (0, "0123  queued\n")
    wanted = {"study": "1.2", "series": "1.2.3", "operation": "superresolve", "scale": 2}
    assert json.loads(seen[0].content) == wanted
    _, _, _, seen = run(said(job, 202), "submit", *words, "--strict", "--min-consistency", "40")
    assert json.loads(seen[-1].content) == wanted | {"options": {"strict": True, "min_consistency": 40.0}}
    run(said(job, 202), "submit", *words[:5], "denoise", "--sigma", "3")


@pytest.mark.parametrize(
    ("status", "content", "text"),
    [
        (401, {"title": "No valid API key", "detail": "an API key is needed"}, "401: No valid API key: an API key is"),
        (422, {"title": "Option out of range", "detail": "scale: ..."}, "422: Option out of range: scale: ..."),
        (502, "<html>", "502: no reason told"),
        (200, "<html>", "is not this service"),
        (200, {}, "of another version?"),
    ],
)
def test_a_refusal_is_told_in_one_line(run, status: int, content: Any, text: str) -> None:
    body = {"text": content} if isinstance(content, str) else {"json": content}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, **body)

    ended, out, err, _ = run(answer, "status")
    assert (ended, out) == (1, "")
    assert text in err
    assert err.count("\n") == 1


def events(*states: str) -> bytes:
    jobs = [{"id": "7", "state": s, "instances": {"total": 2, "verified": 2}, "problem": None} for s in states]
    return b"".join(f": still here\n\nid: 1\nevent: x\ndata: {json.dumps(job)}\n\n".encode() for job in jobs)


@pytest.mark.parametrize(("end", "status"), [("completed", 0), ("completed_with_gaps", 1), ("failed", 1)])
def test_watch_survives_a_restart_and_tells_how_it_ended(run, end: str, status: int) -> None:
    turns = [httpx.ReadError("gone"), httpx.ConnectError("starting"), events("queued", "running"), events(end)]

    def answer(request: httpx.Request) -> httpx.Response:
        turn = turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return httpx.Response(200, content=turn)

    ended, out, _, _ = run(answer, "watch", "7")
    assert ended == status
    assert [line.split()[1] for line in out.splitlines()] == ["queued", "running", end]


@pytest.mark.parametrize("words", [[], ["watch"], ["route"], ["submit", "--study", "1"], ["status", "--speed"]])
def test_wrong_usage_is_2(run, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(said({}), *words)
    assert caught.value.code == 2


@pytest.mark.parametrize("words", [["--key", "a", "--key-file", "b"], ["--key", "a\nb"], ["--url", "ftp://host"]])
def test_a_key_or_address_that_cannot_be_is_wrong_usage(run, words: list[str]) -> None:
    ended, _, err, seen = run(said({}), "status", *words)
    assert (ended, seen) == (2, [])
    assert err.startswith("medrestore: ")
