"""How far the feeds of the PACS have been read: a small SQLite file beside the jobs'."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.jobs.store import BUSY_S, migrate

MIGRATIONS = (
    """CREATE TABLE feed (pacs TEXT PRIMARY KEY, position INTEGER NOT NULL, mark TEXT NOT NULL) STRICT;
    CREATE TABLE seen (
        pacs TEXT NOT NULL,
        series TEXT NOT NULL,
        instances INTEGER NOT NULL,
        since REAL NOT NULL,
        judged INTEGER NOT NULL,
        PRIMARY KEY (pacs, series)
    ) STRICT;""",
)


@dataclass(frozen=True)
class Cursor:
    """Where a feed of changes was read to."""

    position: int  # sequence number of the last change that was dealt with
    mark: str = ""  # what that change was, so that another database is noticed; empty where that is not known


@dataclass(frozen=True)
class Seen:
    """What is known of a series of a PACS that has no feed; times in seconds since 1970."""

    instances: int
    since: float  # since when it has had so many
    judged: bool  # with so many


class Cursors:
    """All methods may be called from any thread; each is one transaction, on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it. Raises JobsUnavailable, sqlite3.Error."""
        path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        migrate(self._connection, MIGRATIONS)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def get(self, pacs: str) -> Cursor | None:
        """None where the feed was never read."""
        rows = self._all("SELECT position, mark FROM feed WHERE pacs = ?", pacs)
        return Cursor(*rows[0]) if rows else None

    def put(self, pacs: str, cursor: Cursor) -> None:
        self._all(
            "INSERT INTO feed VALUES (?1, ?2, ?3) ON CONFLICT (pacs) DO UPDATE SET position = ?2, mark = ?3",
            pacs,
            cursor.position,
            cursor.mark,
        )

    def seen(self, pacs: str) -> dict[str, Seen]:
        """What is known, by SeriesInstanceUID."""
        rows = self._all("SELECT series, instances, since, judged FROM seen WHERE pacs = ?", pacs)
        return {series: Seen(instances, since, bool(judged)) for series, instances, since, judged in rows}

    def see(self, pacs: str, series: str, seen: Seen) -> None:
        self._all(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", pacs, series, seen.instances, seen.since, seen.judged
        )

    def forget(self, pacs: str, series: Iterable[str]) -> None:
        """Drops series that the PACS lists no more."""
        with self._lock:
            self._connection.executemany("DELETE FROM seen WHERE pacs = ? AND series = ?", ((pacs, s) for s in series))

    def _all(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()
