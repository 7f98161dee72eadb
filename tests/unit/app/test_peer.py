"""Settings of a PACS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.pacs.peer import Peer
from app.settings import Settings, table

URL = "http://pacs.example/dicom-web"


@pytest.fixture(autouse=True)
def empty_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of this machine."""
    for name in ("MEDRESTORE_CONFIG", "MEDRESTORE_SHARED", "MEDRESTORE_PACS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_there_is_no_pacs_by_default() -> None:
    assert Settings().pacs == {}


def test_each_pacs_is_a_table_of_the_file() -> None:
    Path("medrestore.toml").write_text(
        f'[pacs.main]\nurl = "{URL}/"\nuser = "me"\npassword_file = "secret"\n'
        '[pacs.archive]\nurl = "https://archive.example:8443/rs"\ntoken = "t"\nread_s = 5\n'
    )
    found = Settings().pacs
    assert found["main"].url == URL  # without the final slash
    assert found["main"].password_file == Path("secret")
    assert (found["archive"].read_s, found["archive"].connect_s) == (5, 5)


def test_a_variable_holds_them_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRESTORE_PACS", json.dumps({"main": {"url": URL, "orthanc": "http://pacs.example"}}))
    assert Settings().pacs["main"].orthanc == "http://pacs.example"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"url": "pacs.example"},
        {"url": "ftp://pacs.example"},
        {"url": "file:///etc/passwd"},
        {"url": "http://"},
        {"url": "http://pacs.example:99999/"},
        {"url": "http://me:secret@pacs.example/"},
        {"url": "http://pacs.example/?a=1"},
        {"url": "http://pacs.example/#a"},
        {"url": URL, "orthanc": "nowhere"},
        {"url": URL, "user": "me"},
        {"url": URL, "password": "p"},
        {"url": URL, "user": "a:b", "password": "p"},
        {"url": URL, "user": "me", "password": "p", "password_file": "f"},
        {"url": URL, "user": "me", "password": "p", "token": "t"},
        {"url": URL, "token": "t", "token_file": "f"},
        {"url": URL, "ca_file": "f"},
        {"url": URL, "read_s": 0},
        {"url": URL, "retries": -1},
        {"url": URL, "pasword": "p"},
    ],
)
def test_what_cannot_work_is_refused_at_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(pacs={"main": settings})


@pytest.mark.parametrize("name", ["", "Main", "a b", "a/b", "-a", "a" * 33])
def test_a_name_is_fit_for_a_label_and_a_path(name: str) -> None:
    with pytest.raises(ValidationError):
        Settings(pacs={name: {"url": URL}})


def test_secrets_are_not_shown() -> None:
    settings = Settings(pacs={"a": {"url": URL, "user": "me", "password": "hush"}, "b": {"url": URL, "token": "hush"}})
    assert "hush" not in repr(settings) + str(settings) + settings.model_dump_json() + table() + table(Peer)
    for wrong in ({"url": URL, "password": "hush", "token": "hush"}, {"url": "http://me:hush@pacs.example"}):
        for build in (lambda wrong=wrong: Settings(pacs={"a": wrong}), lambda wrong=wrong: Peer(**wrong)):
            with pytest.raises(ValidationError) as caught:
                build()
            assert "hush" not in str(caught.value)


def test_the_mark_follows_the_credentials_and_does_not_tell_them(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    peer = Peer(url=URL, token_file=file)
    first = peer.credential_mark()
    assert first == peer.credential_mark() != Peer(url=URL).credential_mark()
    file.write_text("two")
    assert peer.credential_mark() != first
    assert "one" not in first


def test_the_table_tells_every_field() -> None:
    assert all(f"| `{name}` |" in table(Peer) and field.description for name, field in Peer.model_fields.items())
