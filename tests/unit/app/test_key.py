"""API keys and their file."""

from __future__ import annotations

import hashlib
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import medrestore
from app.key import Keys, Scope, make_key, read_keys, remove_key
from models.errors import OptionError

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Told:
    """What `Keys` told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, act: str, **facts: Any) -> None:
        self.events.append((act, facts))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys.toml"


def test_a_key_is_random_kept_as_its_hash_alone_and_found_again(path: Path) -> None:
    first, second = make_key(path, "a", [Scope.RESTORE]), make_key(path, "b", [Scope.PACS, Scope.ADMIN])
    assert len({first, second}) == 2
    assert len(first) >= 43  # 256 bits
    text = path.read_text()
    assert first not in text
    assert hashlib.sha256(first.encode()).hexdigest() in text
    keys = Keys(path, Told())
    found = keys.find(second, NOW)
    assert found is not None
    assert (found.name, found.scopes) == ("b", {Scope.PACS, Scope.ADMIN})
    assert keys.find(first[:-1], NOW) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_expiry_survives_the_file_and_holds_to_the_second(path: Path) -> None:
    secret = make_key(path, "guest", [Scope.RESTORE], NOW)
    keys = Keys(path, Told())
    assert read_keys(path)[0].expires == NOW
    assert keys.find(secret, NOW - timedelta(seconds=1)) is not None
    assert keys.find(secret, NOW) is None


def test_a_running_service_takes_changes_up_and_tells_them(path: Path) -> None:
    told = Told()
    keys = Keys(path, told)
    assert keys.find("mr_anything", NOW) is None
    secret = make_key(path, "a", [Scope.RESTORE])
    assert keys.find(secret, NOW) is not None
    assert keys.find(secret, NOW) is not None
    path.write_text(path.read_text().replace('"restore"', '"pacs"'))
    found = keys.find(secret, NOW)
    assert found is not None
    assert found.scopes == {Scope.PACS}
    remove_key(path, "a")
    assert keys.find(secret, NOW) is None
    changes = [{name: value for name, value in facts.items() if value} for _, facts in told.events]
    assert changes[1:] == [{"count": 1, "added": ["a"]}, {"count": 1, "changed": ["a"]}, {"removed": ["a"]}]


def test_a_spoilt_file_keeps_the_keys_and_a_lost_one_has_none(path: Path) -> None:
    told = Told()
    secret, keys = make_key(path, "a", [Scope.RESTORE]), Keys(path, told)
    assert keys.find(secret, NOW)
    path.write_text("[[key]\nname = 1")
    assert keys.find(secret, NOW)
    assert told.events[-1][0] == "keys refused"
    path.unlink()
    assert keys.find(secret, NOW) is None


@pytest.mark.parametrize(
    "row",
    [
        'name = "a b"\nscopes = ["restore"]\nsha256 = "{0}"',
        'name = "a"\nscopes = ["root"]\nsha256 = "{0}"',
        'name = "a"\nscopes = []\nsha256 = "{0}"',
        'name = "a"\nscopes = ["restore"]\nsha256 = "mr_secret"',
        'name = "a"\nscopes = ["restore"]\nsha256 = "{0}"\nexpires = 2026-01-01T00:00:00',
        'name = "a"\nscopes = ["restore"]\nsha256 = "{0}"\nkey = "mr_secret"',
    ],
)
def test_a_wrong_row_is_named_without_what_it_holds(path: Path, row: str) -> None:
    path.parent.mkdir()
    path.write_text("[[key]]\n" + row.format("0" * 64))
    with pytest.raises(OptionError, match=r"key\.0") as caught:
        read_keys(path)
    assert "mr_secret" not in str(caught.value)


def test_names_tell_keys_apart(path: Path) -> None:
    make_key(path, "a", [Scope.RESTORE])
    with pytest.raises(OptionError, match="there is a key named a"):
        make_key(path, "a", [Scope.PACS])
    with pytest.raises(OptionError, match="no key named b"):
        remove_key(path, "b")
    path.write_text(path.read_text() * 2)
    with pytest.raises(OptionError, match="two keys of one name"):
        read_keys(path)


def test_the_command_makes_lists_and_removes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str]:
        return medrestore.main(["key", *words, "--keys", str(path)]), capsys.readouterr().out

    status, secret = run("new", "--name", "me", "--scope", "restore", "--scope", "pacs", "--expires", "2027-01-31")
    assert (status, secret.count("\n")) == (0, 1)
    assert Keys(path, Told()).find(secret.strip(), NOW)
    status, listed = run("list")
    assert listed.split() == ["me", "pacs", "restore", "until", "2027-01-31", "00:00", "UTC"]
    assert run("new", "--name", "me", "--scope", "pacs")[0] == 2
    assert run("new", "--name", "you")[0] == 2
    assert run("new", "--name", "Doe^Jane", "--scope", "pacs")[0] == 2
    assert run("remove", "--name", "me") == (0, "")
    assert run("list") == (0, "")
