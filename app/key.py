"""API keys: made at random, shown once, kept as hashes in a TOML file that is read again when it changes.

A key is 256 random bits, so its plain SHA-256 is all that needs keeping. Slow, salted hashes protect what people
choose, which can be guessed; one of 2^256 values cannot, however cheap a try, and no two keys are alike. Whoever reads
a hash can open nothing with it. Hashes are compared in the same time whatever they are (`hmac.compare_digest`).

    [[key]]
    name = "ct-workstation"        # told by the audit log
    scopes = ["restore"]           # restore, pacs, admin: each alone, none includes another
    sha256 = "9f86d0..."
    expires = 2027-01-31T00:00:00Z # may be left out
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tomllib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.errors import OptionError

PREFIX = "mr_"  # tells people, and scanners for lost secrets, what they have found
RANDOM_BYTES = 32
HEADER = "# API keys of MedRestore, as hashes. `medrestore key` writes this file; a running service takes changes up.\n"


class Scope(StrEnum):
    """What a key opens."""

    RESTORE = "restore"
    PACS = "pacs"
    ADMIN = "admin"


class Key(BaseModel):
    """One row of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"\A[A-Za-z0-9._-]{1,64}\z")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    expires: AwareDatetime | None = None

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and now >= self.expires

    def toml(self) -> str:
        """The row as text."""
        scopes = ", ".join(f'"{scope}"' for scope in sorted(self.scopes))
        lines = ["[[key]]", f'name = "{self.name}"', f"scopes = [{scopes}]", f'sha256 = "{self.sha256}"']
        if self.expires:
            lines.append(f"expires = {self.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
        return "\n".join(lines) + "\n"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: list[Key] = []

    @field_validator("key")
    @classmethod
    def _names_tell_apart(cls, keys: list[Key]) -> list[Key]:
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys of one name")
        return keys


class Keys:
    """The keys of a file as they are now.

    `told` gets an event's name and facts when the file was read, or could not be. A file that is spoilt while the
    service runs leaves the keys that it had before, so that a slip of the pen locks nobody out; one that is gone
    holds no keys.
    """

    def __init__(self, path: Path, told: Callable[..., None]) -> None:
        self._path = path
        self._told = told
        self._mark: Any = None
        self._keys: tuple[Key, ...] = ()

    def find(self, secret: str, now: datetime) -> Key | None:
        """The key that `secret` is; None for a wrong or an expired one."""
        self.refresh()
        digest = digest_of(secret)
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found and not found[0].expired(now) else None

    def refresh(self) -> None:
        """Reads the file where it is not the one that was read last."""
        if (mark := _mark_of(self._path)) == self._mark:
            return
        self._mark = mark
        try:
            keys = read_keys(self._path)
        except OptionError as error:
            self._told("keys refused", reason=str(error), kept=len(self._keys))
            return
        before, after = {key.name: key for key in self._keys}, {key.name: key for key in keys}
        changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
        added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
        self._keys = keys
        self._told("keys read", count=len(keys), added=added, removed=removed, changed=changed)


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; none where there is no file. Raises OptionError without quoting what it holds."""
    try:
        found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise OptionError(f"keys {path}: {error.strerror}") from error
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise OptionError(f"keys {path}: {places}") from error
    except ValueError as error:  # no TOML, or no text
        raise OptionError(f"keys {path}: not a TOML file") from error
    return tuple(found.key)


def make_key(path: Path, name: str, scopes: Iterable[Scope], expires: datetime | None = None) -> str:
    """Adds a new key to the file and gives it: this is the only time that it is seen. Raises OptionError."""
    keys = read_keys(path)
    if any(key.name == name for key in keys):
        raise OptionError(f"there is a key named {name} in {path}; remove it first, or take another name")
    secret = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    try:
        key = Key(name=name, scopes=frozenset(scopes), sha256=digest_of(secret), expires=expires)
    except ValidationError as error:
        raise OptionError("; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())) from error
    _write(path, (*keys, key))
    return secret


def remove_key(path: Path, name: str) -> None:
    """Takes a key out of the file. Raises OptionError where it is not there."""
    keys = read_keys(path)
    left = tuple(key for key in keys if key.name != name)
    if len(left) == len(keys):
        raise OptionError(f"no key named {name} in {path}")
    _write(path, left)


def digest_of(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _mark_of(path: Path) -> tuple[int, ...] | str:
    """Changes whenever the file does; the reason where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError as error:
        return type(error).__name__
    return found.st_ino, found.st_mtime_ns, found.st_size


def _write(path: Path, keys: Iterable[Key]) -> None:
    """Replaces the file in one step; only its owner may read it, and who owned it goes on owning it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            if path.exists() and os.geteuid() == 0:
                owner = path.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write("\n".join([HEADER, *(key.toml() for key in keys)]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
