"""The door by itself: what a header says, and which row a path lies under."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.access import KEY_SHAPE, TABLE, Access, Rule, announce, presented, row_of, scope_of
from app.audit import Audit
from app.errors import AmbiguousKey, ServiceError
from app.key import Scope, make_key
from app.settings import Settings
from models.errors import OptionError

NAMES = st.sampled_from(["authorization", "Authorization", "x-api-key", "X-API-KEY", "accept", "cookie"])
SECRET = st.text("abcXYZ019-._~+/=", min_size=1, max_size=60)
VALUES = st.one_of(
    SECRET,
    st.builds(
        lambda scheme, text: f"{scheme} {text}", st.sampled_from(["Bearer", "bearer", "Basic", "Digest"]), SECRET
    ),
    st.text(st.characters(max_codepoint=255), max_size=400),
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=4))
def test_whatever_the_headers_are_there_is_a_well_formed_key_or_none_or_a_refusal(
    fields: list[tuple[str, str]],
) -> None:
    headers = Headers(raw=[(name.lower().encode(), value.encode("latin-1")) for name, value in fields])
    try:
        found = presented(headers)
    except AmbiguousKey:
        assert len(fields) > 1
        return
    assert not found or KEY_SHAPE.fullmatch(found)
    assert found is None or any(found in value for _, value in fields)


@given(SECRET)
def test_both_ways_carry_the_same_key(secret: str) -> None:
    assert presented(Headers({"X-API-Key": secret})) == secret
    assert presented(Headers({"Authorization": f"Bearer {secret}"})) == secret
    assert presented(Headers({"Authorization": f"Basic {secret}"})) is None
    with pytest.raises(AmbiguousKey):
        presented(Headers({"Authorization": f"Bearer {secret}", "X-API-Key": secret}))


@given(st.text("/.%v12healthzdnoispcj{}?;", max_size=40))
def test_no_path_is_open_but_the_four_that_say_so(path: str) -> None:
    row = row_of(path)
    if row and TABLE[row] == Rule.OPEN:
        assert path.removeprefix("/v1") in ("/healthz/live", "/healthz/ready", "/v2/health/live", "/v2/health/ready")


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("/jobs/1/events", "/jobs"),
        ("/v1/jobs", "/jobs"),
        ("/jobsy", None),
        ("/healthz/live/", None),
        ("//denoise", None),
        ("/v1", None),
        ("/v1/v1/denoise", None),
        ("/v2/health/live", "/v2/health/live"),
        ("/v2/health/other", "/v2"),
        ("/v1/pacs/events/orthanc", "/pacs/events"),
        ("/pacs/eventsy", "/pacs"),
        ("/dicomweb/studies/1.2", "/dicomweb"),
    ],
)
def test_a_path_lies_under_the_longest_row(path: str, row: str | None) -> None:
    assert row_of(path) == row


def test_each_row_needs_what_it_says() -> None:
    assert {row: scope_of(need) for row, need in TABLE.items() if scope_of(need)} == {
        "/metrics": Scope.ADMIN,
        **dict.fromkeys(("/denoise", "/superresolve", "/analyze", "/jobs", "/v2"), Scope.RESTORE),
        **dict.fromkeys(("/pacs", "/pacs/events", "/dicomweb"), Scope.PACS),
    }


def test_a_webhooks_token_file_is_read_each_time_and_its_loss_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    settings = Settings(keys=tmp_path / "keys.toml", webhook_token_file=file)
    access = Access(settings, Audit(None, lambda: None))

    def let_in(token: str) -> bool:
        raw = [(b"authorization", f"Bearer {token}".encode())]
        try:
            access.admit({"type": "http", "path": "/pacs/events/orthanc", "headers": raw, "client": ("192.0.2.1", 1)})
        except ServiceError:
            return False
        return True

    assert (let_in("first"), let_in("second")) == (True, False)
    file.write_text("second")
    assert (let_in("first"), let_in("second")) == (False, True)
    file.unlink()
    assert (let_in("second"), let_in("")) == (False, False)


@pytest.mark.parametrize(
    "settings",
    [
        {"webhook_token": ""},
        {"webhook_token": "two words"},
        {"audit": "nowhere/audit.log"},
        {"keys": "spoilt.toml"},
    ],
)
def test_what_cannot_guard_does_not_start(settings: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spoilt.toml").write_text("[[key]]\nname = 'a'")
    with pytest.raises(OptionError):
        announce(Settings(**settings))


def test_the_start_says_who_may_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.toml"
    announce(Settings(access="open", host="0.0.0.0"))
    announce(Settings(keys=path))
    assert ["open" in caplog.messages[0], "no API keys yet" in caplog.messages[1]] == [True, True]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    make_key(path, "a", [Scope.ADMIN])
    caplog.clear()
    announce(Settings(keys=path))
    assert caplog.messages == []
