"""What became of each instance of a job's series: rows beside the jobs, in the same SQLite file.

    pending ──> stored ──> verified
       │ ^─────────┘ the PACS does not list it after all
       ├──> skipped   no image to restore, by rule
       ├──> failed    with its reason; `reopen` gives it another chance
       └──> gone      deleted from the PACS since it was listed

A row moves forward only when the PACS has confirmed it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from app.jobs.store import BUSY_S, translated


class Outcome(StrEnum):
    """Where an instance is."""

    PENDING = "pending"
    STORED = "stored"
    VERIFIED = "verified"
    SKIPPED = "skipped"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True)
class Instance:
    """One row."""

    source: str  # SOPInstanceUID
    derived: str  # SOPInstanceUID of what is made of it
    state: Outcome = Outcome.PENDING
    reason: str | None = None  # a slug
    position: int = 0  # in the order of listing, from 0
    attempts: int = 0  # that failed although the PACS was there
    digest: str | None = None  # SHA-256 of the derived pixels, once they were made
    consistency: float | None = None  # dB, of what was super-resolved: see `app.consistency`


class Instances:
    """The rows of all jobs. Each method is one transaction, on the disk when it returns, callable from any thread.

    All raise JobsUnavailable, and DiskFull.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the file of jobs, which `app.jobs.store` makes."""
        self._path = path

    def add(self, job: str, found: Sequence[Instance]) -> int:
        """Takes up what was listed, gives how many of them are new.

        What was derived otherwise before (by another runtime, say) is pending again.
        """
        with self._changing() as connection:
            numbers = "SELECT count(*), ifnull(max(position) + 1, 0) FROM pacs_instance WHERE job = ?"
            count, position = connection.execute(numbers, (job,)).fetchone()
            connection.executemany(
                "INSERT INTO pacs_instance (job, source, position, derived, state, reason) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET derived = excluded.derived, state = excluded.state, "
                "reason = excluded.reason, digest = NULL, consistency = NULL "
                "WHERE excluded.derived NOT IN (derived, '')",
                [(job, i.source, position + n, i.derived, i.state, i.reason) for n, i in enumerate(found)],
            )
            after, _ = connection.execute(numbers, (job,)).fetchone()
            return int(after - count)

    def settle(self, job: str, changed: Sequence[Instance]) -> None:
        """Writes state, reason and what was measured of pending instances."""
        with self._changing() as connection:
            connection.executemany(
                "UPDATE pacs_instance SET state = ?, reason = ?, consistency = ifnull(?, consistency) "
                "WHERE job = ? AND source = ? AND state = 'pending'",
                [(i.state, i.reason, i.consistency, job, i.source) for i in changed],
            )

    def announce(self, job: str, made: Sequence[Instance]) -> None:
        """Notes what is about to be stored: UID and digest of what was derived, and what was measured."""
        with self._changing() as connection:
            connection.executemany(
                "UPDATE pacs_instance SET derived = ?, digest = ?, consistency = ? WHERE job = ? AND source = ?",
                [(i.derived, i.digest, i.consistency, job, i.source) for i in made],
            )

    def found(self, job: str, derived: Collection[str]) -> int:
        """Notes which derived instances the PACS holds: what is pending and there needs no storing. Gives how many
        are pending still."""
        with self._changing() as connection:
            pending = self._select(connection, job, (Outcome.PENDING,))
            there = [(job, i.source) for i in pending if i.derived in derived]
            connection.executemany("UPDATE pacs_instance SET state = 'stored' WHERE job = ? AND source = ?", there)
            return len(pending) - len(there)

    def missed(self, job: str, derived: Collection[str], most: int) -> None:
        """Has what the PACS lacks of the stored done again; what it lacked `most` times in turn has failed."""
        with self._changing() as connection:
            lost = self._select(connection, job, (Outcome.STORED, Outcome.VERIFIED))
            connection.executemany(
                "UPDATE pacs_instance SET attempts = attempts + 1, "
                "state = iif(attempts + 1 < ?1, 'pending', 'failed'), "
                "reason = iif(attempts + 1 < ?1, NULL, 'not_kept') WHERE job = ?2 AND source = ?3",
                [(most, job, i.source) for i in lost if i.derived not in derived],
            )

    def verify(self, job: str) -> None:
        """All that is stored is verified."""
        with self._changing() as connection:
            connection.execute(
                "UPDATE pacs_instance SET state = 'verified', attempts = 0 WHERE job = ? AND state = 'stored'", (job,)
            )

    def failed_once(self, job: str, source: str, most: int, reason: str) -> bool:
        """Counts an attempt at an instance, which fails with `reason` at the last of `most`; tells whether it did."""
        with self._changing() as connection:
            [(state,)] = connection.execute(
                "UPDATE pacs_instance SET attempts = attempts + 1, "
                "state = iif(attempts + 1 < ?1, state, 'failed'), reason = iif(attempts + 1 < ?1, NULL, ?2) "
                "WHERE job = ?3 AND source = ?4 AND state = 'pending' RETURNING state",
                (most, reason, job, source),
            ).fetchall()
            return state == Outcome.FAILED  # type: ignore[no-any-return]

    def reopen(self, job: str) -> None:
        """What failed or was gone is pending again."""
        with self._changing() as connection:
            connection.execute(
                "UPDATE pacs_instance SET state = 'pending', reason = NULL, attempts = 0, digest = NULL, "
                "consistency = NULL "
                "WHERE job = ? AND state IN ('failed', 'gone')",
                (job,),
            )

    # -- look-ups -----------------------------------------------------------------------------

    def pending(self, job: str) -> dict[str, Instance]:
        """By source, in the order of listing."""
        with self._reading() as connection:
            return {i.source: i for i in self._select(connection, job, (Outcome.PENDING,))}

    def sample(self, job: str, every: int) -> list[Instance]:
        """Every so-maniest of those that are stored, the first one always."""
        with self._reading() as connection:
            return self._select(connection, job, (Outcome.STORED,))[::every]

    def page(self, job: str, count: int, after: int = -1, state: str | None = None) -> list[Instance]:
        """Instances behind a position."""
        with self._reading() as connection:
            return self._select(connection, job, [state] if state else list(Outcome), after, count)

    def counts(self, job: str) -> dict[Outcome, int]:
        """Number of instances in each state."""
        with self._reading() as connection:
            rows = connection.execute("SELECT state, count(*) FROM pacs_instance WHERE job = ? GROUP BY state", (job,))
            return dict.fromkeys(Outcome, 0) | {Outcome(state): count for state, count in rows}

    def jobs_by_status(self) -> dict[tuple[str, str], tuple[int, float | None]]:
        """(PACS, status) -> how many jobs, and since when the first of them waits."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT json_extract(parameters, '$.pacs'), coalesce(phase, state), count(*), min(waiting_since) "
                "FROM job WHERE kind IN ('pacs', 'door') GROUP BY 1, 2"
            )
            return {(pacs, status): (count, since) for pacs, status, count, since in rows}

    # -- rows ---------------------------------------------------------------------------------

    @staticmethod
    def _select(
        connection: sqlite3.Connection, job: str, states: Collection[str], after: int = -1, count: int = -1
    ) -> list[Instance]:
        rows = connection.execute(
            "SELECT source, derived, state, reason, position, attempts, digest, consistency FROM pacs_instance "
            "WHERE job = ? "
            "AND state IN (SELECT value FROM json_each(?)) AND position > ? ORDER BY position LIMIT ?",
            (job, json.dumps(list(states)), after, count),
        )
        return [Instance(row[0], row[1], Outcome(row[2]), *row[3:]) for row in rows]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with (
            translated(),
            closing(sqlite3.connect(f"file:{self._path}?mode=rw", BUSY_S, isolation_level=None, uri=True)) as opened,
        ):
            opened.execute("PRAGMA synchronous = FULL")
            yield opened

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
