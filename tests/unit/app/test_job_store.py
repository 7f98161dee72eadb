"""The file of jobs: schema, migrations, readers beside a writer, and the steps of the state machine."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from app.errors import JobsUnavailable
from app.jobs.store import MIGRATIONS, State, Store, migrate


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs.sqlite3")


def version(path: Path) -> int:
    return int(sqlite3.connect(path).execute("PRAGMA user_version").fetchone()[0])


def test_an_old_file_is_brought_up_to_date_and_keeps_its_jobs(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    old = sqlite3.connect(path, isolation_level=None)
    migrate(old, MIGRATIONS[:1])
    row = "INSERT INTO job (id, kind, parameters, state, created, due) VALUES ('a', 'k', '{\"n\": 1}', 'queued', 5, 5)"
    old.execute(row)
    old.close()
    assert version(path) == 1
    store = Store(path)
    assert version(path) == len(MIGRATIONS)
    job = store.find("a")
    assert job is not None
    assert (job.kind, job.parameters, job.state, job.created) == ("k", {"n": 1}, State.QUEUED, 5.0)
    assert store.add("b", "k", {}, None, key="x").id == "b"
    assert store.add("c", "k", {}, None, key="x").id == "b"


def test_a_file_of_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    Store(path, (*MIGRATIONS, "CREATE TABLE later (x)")).close()
    with pytest.raises(JobsUnavailable, match="newer version"):
        Store(path)
    assert version(path) == len(MIGRATIONS) + 1


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    Store(path).close()
    with pytest.raises(JobsUnavailable):
        Store(path, (*MIGRATIONS, "CREATE TABLE half (x); CREATE TABLE job (x)"))
    assert version(path) == len(MIGRATIONS)
    assert Store(path).page("k", 1) == []


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"something else, and long enough to be looked at" * 50)
    with pytest.raises(JobsUnavailable, match="cannot be used"):
        Store(tmp_path / "jobs.sqlite3")


def test_jobs_survive_closing(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite3")
    store.add("a", "k", {"x": [1, None]}, 7)
    store.claim()
    store.advance("a", 3, 7)
    store.close()
    job = Store(tmp_path / "jobs.sqlite3").find("a")
    assert job is not None
    assert (job.state, job.progress, job.total, job.parameters) == (State.RUNNING, 3, 7, {"x": [1, None]})


def test_readers_see_whole_changes_while_another_connection_writes(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    writer, reader, stop = Store(path), Store(path), threading.Event()
    writer.add("a", "k", {}, 50)
    writer.claim()
    seen: list[tuple[int, int]] = []

    def read() -> None:
        while not stop.is_set():
            job = reader.find("a")
            assert job is not None
            seen.append((job.revision, job.progress))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(1, 31):
        writer.advance("a", step, 50)
    stop.set()
    for thread in threads:
        thread.join()
    assert {revision - progress for revision, progress in seen} == {2}  # one revision a step, never half of one


def test_the_oldest_due_job_goes_first_and_once(store: Store) -> None:
    for name in "abc":
        store.add(name, "k", {}, None)
    first = store.claim()
    assert first is not None
    assert (first.id, first.state, first.attempts) == ("a", State.RUNNING, 1)
    assert store.postpone("a", time.time() + 100)
    claimed = [store.claim() for _ in range(3)]
    assert [job and job.id for job in claimed] == ["b", "c", None]
    due = store.next_due()
    assert due is not None
    assert due > time.time() + 50


@pytest.mark.parametrize("end", [State.DONE, State.FAILED, State.CANCELLED])
def test_an_end_is_final(store: Store, end: State) -> None:
    store.add("a", "k", {}, None)
    assert store.finish("a", State.DONE) is None  # not before it ran
    store.claim()
    ended = store.finish("a", end, {"x": 1}, {"type": "t"})
    assert ended is not None
    assert (ended.state, ended.outcome, ended.problem) == (end, {"x": 1}, {"type": "t"})
    assert ended.state.final
    for again in State:
        assert store.finish("a", again) is None
    assert store.postpone("a", 0) is None
    assert store.advance("a", 1, 2) is None
    assert store.claim() is None
    assert store.recover() == []


def test_every_change_has_its_own_revision(store: Store) -> None:
    store.add("a", "k", {}, None)
    changes = [store.claim(), store.advance("a", 1, 2), store.postpone("a", 0), store.claim(), *store.recover()]
    changes += [store.finish("a", State.CANCELLED)]
    assert [job and job.revision for job in changes] == [2, 3, 4, 5, 6, 7]


def test_a_death_is_counted_for_what_was_running_alone(store: Store) -> None:
    store.add("a", "k", {}, None)
    store.add("b", "k", {}, None)
    store.claim()
    recovered = store.recover()
    assert [(job.id, job.state, job.deaths) for job in recovered] == [("a", State.QUEUED, 1)]
    assert store.counts()[State.QUEUED] == 2


def test_old_ends_are_found_and_removed(store: Store) -> None:
    store.add("a", "k", {}, None)
    store.finish("a", State.CANCELLED)
    store.add("b", "k", {}, None)
    assert [job.id for job in store.finished_before(time.time() + 1)] == ["a"]
    assert not store.remove("a", 0)
    assert store.remove("a", time.time())
    assert store.ids() == {"b"}


def test_what_was_queued_anew_is_not_removed(store: Store) -> None:
    store.add("a", "k", {}, None)
    store.finish("a", State.CANCELLED)
    store.retry("a")
    assert not store.remove("a", time.time() + 1)
    assert store.ids() == {"a"}


def test_a_run_that_was_forgiven_is_not_counted_below_none(store: Store) -> None:
    store.add("a", "k", {}, None)
    for change in (store.wait, store.block):
        store.claim()
        store.retry("a")
        job = change("a", *((0.0, {}) if change == store.wait else ({},)))
        assert job is not None
        assert job.attempts == 0
