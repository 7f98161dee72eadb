"""The jobs on disk: one SQLite file, a row for each job, changed by guarded steps of one state machine.

    queued ──> running ──> done
      ^  │        │ ├────> failed
      │  └────────┼─┴────> cancelled
      ├───────────┤ again later, or after the service's death
      └─ blocked <┘ until somebody acts

`retry` queues a job anew, whatever its state; one that runs is queued at its end.

A row holds no image content and no name out of an image. Every change counts `revision` up.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.errors import DiskFull, JobsUnavailable

# Step n brings a file from schema n to n + 1 (`PRAGMA user_version`). Steps are added, never changed.
MIGRATIONS = (
    """CREATE TABLE job (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        parameters TEXT NOT NULL,
        state TEXT NOT NULL,
        revision INTEGER NOT NULL DEFAULT 1,
        attempts INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        progress INTEGER NOT NULL DEFAULT 0,
        total INTEGER,
        created REAL NOT NULL,
        due REAL NOT NULL,
        started REAL,
        finished REAL,
        outcome TEXT,
        problem TEXT
    ) STRICT;
    CREATE INDEX job_by_state ON job (state, due);
    CREATE INDEX job_by_age ON job (created);""",
    """ALTER TABLE job ADD COLUMN idempotency TEXT;
    CREATE UNIQUE INDEX job_by_idempotency ON job (idempotency);""",
    """ALTER TABLE job ADD COLUMN phase TEXT;
    ALTER TABLE job ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE job ADD COLUMN waiting_since REAL;
    ALTER TABLE job ADD COLUMN again INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE pacs_instance (
        job TEXT NOT NULL,
        source TEXT NOT NULL,
        position INTEGER NOT NULL,
        derived TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        digest TEXT,
        PRIMARY KEY (job, source)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX pacs_instance_by_position ON pacs_instance (job, position);
    CREATE TRIGGER pacs_instances_go_with_their_job AFTER DELETE ON job
        BEGIN DELETE FROM pacs_instance WHERE job = old.id; END;""",
    "ALTER TABLE pacs_instance ADD COLUMN consistency REAL;",
)
DATABASE = "jobs.sqlite3"  # in the folder of jobs
BUSY_S = 10.0  # wait for another process's change, such as a backup's


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    BLOCKED = "blocked"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Job:
    """One row; times in seconds since 1970."""

    id: str  # random
    kind: str  # names the handler
    parameters: dict[str, Any]
    state: State
    revision: int
    attempts: int  # runs begun
    deaths: int  # runs that the death of the service ended
    progress: int  # steps done, of `total`
    total: int | None
    created: float
    due: float  # not before
    started: float | None  # of the first run
    finished: float | None
    outcome: dict[str, Any] | None  # what the handler gave
    problem: dict[str, Any] | None  # RFC 9457, where it failed, waits or is blocked
    phase: str | None = None  # what a run is about, in its handler's own word; "waiting" between two runs
    waits: int = 0  # times it had to wait since it last got on
    waiting_since: float | None = None  # the first of them
    again: int = 0  # 1 where it is to be run again after this run


class Store:
    """All methods may be called from any thread; each is one transaction, on the disk when it returns.

    All raise JobsUnavailable where the file cannot be read or written, and DiskFull where there is no room for it.
    """

    def __init__(self, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
        """Opens the file, or makes it, and brings its schema up to date. Raises JobsUnavailable."""
        self._lock = threading.Lock()
        with ExitStack() as stack, translated():
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False)
            stack.callback(self._connection.close)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            migrate(self._connection, migrations)
            stack.pop_all()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # -- look-ups -----------------------------------------------------------------------------

    def find(self, id: str) -> Job | None:
        return self._one("SELECT * FROM job WHERE id = ?", id)

    def find_by_key(self, key: str) -> Job | None:
        """The job that was made under an idempotency key."""
        return self._one("SELECT * FROM job WHERE idempotency = ?", digest_of(key))

    def counts(self) -> dict[State, int]:
        """Number of jobs in each state."""
        rows = self._rows("SELECT state, count(*) FROM job GROUP BY state")
        return dict.fromkeys(State, 0) | {State(state): count for state, count in rows}

    def ids(self) -> set[str]:
        return {id for (id,) in self._rows("SELECT id FROM job")}

    def page(
        self,
        kind: str,
        count: int,
        status: str | None = None,
        parameter: tuple[str, str] | None = None,
        before: tuple[float, str] | None = None,
    ) -> list[Job]:
        """The newest jobs of a kind: those of a `status`, with a parameter's value, older than (created, id)."""
        name, value = parameter or (None, None)
        return self._all(
            "SELECT * FROM job WHERE kind = ?1 AND (?2 IS NULL OR coalesce(phase, state) = ?2) "
            "AND (?3 IS NULL OR json_extract(parameters, '$.' || ?3) = ?4) "
            "AND (?5 IS NULL OR (created, id) < (?5, ?6)) ORDER BY created DESC, id DESC LIMIT ?7",
            kind,
            status,
            name,
            value,
            *(before or (None, None)),
            count,
        )

    def next_due(self, kind: str | None = None) -> float | None:
        """When the next queued job may run; None without any."""
        [(due,)] = self._rows("SELECT min(due) FROM job WHERE state = 'queued' AND (?1 IS NULL OR kind = ?1)", kind)
        return None if due is None else float(due)

    def made(self, series: str) -> bool:
        """Whether a job that is kept told of this series as its outcome."""
        return bool(self._rows("SELECT 1 FROM job WHERE json_extract(outcome, '$.series') = ? LIMIT 1", series))

    def finished_before(self, moment: float) -> list[Job]:
        return self._all("SELECT * FROM job WHERE finished <= ?", moment)

    # -- changes ------------------------------------------------------------------------------

    def add(self, id: str, kind: str, parameters: dict[str, Any], total: int | None, key: str | None = None) -> Job:
        """Queues a job; gives the one that is there where the key was used before."""
        now = time.time()
        facts = (id, kind, json.dumps(parameters), State.QUEUED, total, now, now, key and digest_of(key))
        added = self._one(
            "INSERT INTO job (id, kind, parameters, state, total, created, due, idempotency) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (idempotency) DO NOTHING RETURNING *",
            *facts,
        )
        found = added or (self.find_by_key(key) if key else None)
        assert found is not None
        return found

    def claim(self, kind: str | None = None) -> Job | None:
        """Takes the oldest job that is due, of a `kind`: it runs from now on."""
        now = time.time()
        return self._one(
            "UPDATE job SET state = 'running', phase = NULL, again = 0, revision = revision + 1, "
            "attempts = attempts + 1, started = coalesce(started, ?1) WHERE id = (SELECT id FROM job "
            "WHERE state = 'queued' AND due <= ?1 AND (?2 IS NULL OR kind = ?2) ORDER BY created, id LIMIT 1) "
            "RETURNING *",
            now,
            kind,
        )

    def advance(self, id: str, progress: int, total: int) -> Job | None:
        """Notes the progress of a running job, which forgives it all deaths and waits; None where it runs no more."""
        return self._one(
            "UPDATE job SET progress = ?1, total = ?2, revision = revision + 1, "
            "deaths = CASE WHEN ?1 > progress THEN 0 ELSE deaths END, "
            "waits = CASE WHEN ?1 > progress THEN 0 ELSE waits END, "
            "waiting_since = CASE WHEN ?1 > progress THEN NULL ELSE waiting_since END "
            "WHERE id = ?3 AND state = 'running' RETURNING *",
            progress,
            total,
            id,
        )

    def enter(self, id: str, phase: str) -> Job | None:
        """Notes what a running job is about."""
        return self._one(
            "UPDATE job SET phase = ?, revision = revision + 1 WHERE id = ? AND state = 'running' RETURNING *",
            phase,
            id,
        )

    def wait(self, id: str, due: float, problem: dict[str, Any]) -> Job | None:
        """Queues a running job again, for `due` or later, without counting its run as an attempt."""
        return self._one(
            "UPDATE job SET state = 'queued', phase = 'waiting', due = ?, problem = ?, "
            "attempts = max(attempts - 1, 0), waits = waits + 1, waiting_since = coalesce(waiting_since, ?), "
            "revision = revision + 1 WHERE id = ? AND state = 'running' RETURNING *",
            due,
            json.dumps(problem),
            time.time(),
            id,
        )

    def block(self, id: str, problem: dict[str, Any]) -> Job | None:
        """Has a running job rest until `retry`."""
        return self._one(
            "UPDATE job SET state = 'blocked', phase = NULL, problem = ?, attempts = max(attempts - 1, 0), "
            "revision = revision + 1 WHERE id = ? AND state = 'running' RETURNING *",
            json.dumps(problem),
            id,
        )

    def retry(self, id: str) -> Job | None:
        """Queues a job anew, to run at once; one that runs, once it has ended well. None where there is none."""
        return self._one(
            "UPDATE job SET again = (state = 'running'), phase = CASE state WHEN 'running' THEN phase END, "
            "state = CASE state WHEN 'running' THEN state ELSE 'queued' END, due = ?, attempts = 0, deaths = 0, "
            "waits = 0, waiting_since = NULL, finished = NULL, revision = revision + 1 WHERE id = ? RETURNING *",
            time.time(),
            id,
        )

    def postpone(self, id: str, due: float) -> Job | None:
        """Queues a running job again, for `due` or later."""
        return self._one(
            "UPDATE job SET state = 'queued', phase = NULL, due = ?, revision = revision + 1 "
            "WHERE id = ? AND state = 'running' RETURNING *",
            due,
            id,
        )

    def finish(
        self,
        id: str,
        state: State,
        outcome: dict[str, Any] | None = None,
        problem: dict[str, Any] | None = None,
    ) -> Job | None:
        """Ends a job that has not ended; None where it has. Only a running one becomes done, or, where it is to be
        run again, queued. The outcome may have a `phase`, by which the end is known."""
        return self._one(
            "UPDATE job SET state = CASE WHEN ?1 = 'done' AND again THEN 'queued' ELSE ?1 END, "
            "phase = CASE WHEN ?1 = 'done' AND NOT again THEN json_extract(?3, '$.phase') END, "
            "finished = CASE WHEN ?1 = 'done' AND again THEN NULL ELSE ?2 END, "
            "outcome = ?3, problem = ?4, waiting_since = NULL, revision = revision + 1 "
            "WHERE id = ?5 AND (state = 'running' OR (state IN ('queued', 'blocked') AND ?1 != 'done')) RETURNING *",
            state,
            time.time(),
            None if outcome is None else json.dumps(outcome),
            None if problem is None else json.dumps(problem),
            id,
        )

    def recover(self) -> list[Job]:
        """Queues what was running when the service died, each with one death more; gives those jobs."""
        return self._all(
            "UPDATE job SET state = 'queued', phase = NULL, deaths = deaths + 1, revision = revision + 1 "
            "WHERE state = 'running' RETURNING *"
        )

    def remove(self, id: str, moment: float) -> bool:
        """Forgets a job that had ended by then; whether there was one. One that was queued anew stays."""
        return bool(self._all("DELETE FROM job WHERE id = ? AND finished <= ? RETURNING *", id, moment))

    # -- rows ---------------------------------------------------------------------------------

    def _one(self, statement: str, *values: Any) -> Job | None:
        found = self._all(statement, *values)
        return found[0] if found else None

    def _all(self, statement: str, *values: Any) -> list[Job]:
        with translated():
            return [_job(row) for row in self._rows(statement, *values)]

    def _rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with translated(), self._lock:
            return self._connection.execute(statement, values).fetchall()


@contextmanager
def translated() -> Iterator[None]:
    """Failures of the file as errors of the service. SQLite's messages name no values; those of others might."""
    try:
        yield
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFull("the disk of the jobs' database is full") from exc
        raise JobsUnavailable(f"the jobs' database cannot be used: {exc}") from exc
    except OSError as exc:
        raise JobsUnavailable(f"the jobs' database cannot be used: {exc.strerror}") from exc
    except (LookupError, TypeError, ValueError) as exc:  # rows that this program did not write
        raise JobsUnavailable("the jobs' database holds what is no job") from exc


def migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Takes the steps that a file has not seen, each whole or not at all. Raises JobsUnavailable for a newer file."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(migrations):
        raise JobsUnavailable(
            f"the jobs are of schema {version}, written by a newer version of the service; this one knows "
            f"{len(migrations)}: update it, or set `jobs` to another folder"
        )
    for number, step in enumerate(migrations[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {step};\nPRAGMA user_version = {number}; COMMIT;")


def digest_of(key: str) -> str:
    """What is kept of a caller's idempotency key, which may say anything."""
    return hashlib.sha256(key.encode()).hexdigest()


def _job(row: sqlite3.Row) -> Job:
    facts = {key: row[key] for key in row.keys() if key != "idempotency"}  # noqa: SIM118  (a Row iterates over values)
    for name in ("parameters", "outcome", "problem"):
        facts[name] = None if facts[name] is None else json.loads(facts[name])
    return Job(**facts | {"state": State(facts["state"])})
