"""Outcomes of instances: every way through their states, and what a job's key depends on."""

from __future__ import annotations

import math
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.errors import JobsUnavailable
from app.jobs.store import State, Store
from app.pacs.instance import Instance, Instances, Outcome
from app.pacs.key import Order

UIDS = [f"1.2.{n}" for n in range(8)]
ORDER = Order("main", "1.2", "1.2.3", "denoise", 1, "tiny@1", "ab" * 32, 1.0, None, "exact")


@pytest.fixture
def instances(tmp_path: Path) -> Instances:
    Store(tmp_path / "jobs.sqlite3").close()
    return Instances(tmp_path / "jobs.sqlite3")


def rows(*uids: str) -> list[Instance]:
    return [Instance(uid, f"{uid}.9") for uid in uids]


class Machine(RuleBasedStateMachine):
    """A model of dictionaries beside the database."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "jobs.sqlite3"
        Store(path).close()
        self.real = Instances(path)
        self.model: dict[str, Outcome] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(uids=st.lists(st.sampled_from(UIDS), unique=True))
    def list(self, uids: list[str]) -> None:
        fresh = [uid for uid in uids if uid not in self.model]
        assert self.real.add("j", rows(*uids)) == len(fresh)
        self.model |= dict.fromkeys(fresh, Outcome.PENDING)

    @rule(uid=st.sampled_from(UIDS), state=st.sampled_from([Outcome.STORED, Outcome.SKIPPED, Outcome.FAILED]))
    def settle(self, uid: str, state: Outcome) -> None:
        self.real.settle("j", [Instance(uid, "", state, "reason")])
        if self.model.get(uid) is Outcome.PENDING:
            self.model[uid] = state

    @rule(held=st.sets(st.sampled_from(UIDS)))
    def find(self, held: set[str]) -> None:
        self.real.found("j", {f"{uid}.9" for uid in held})
        for uid in held:
            if self.model.get(uid) is Outcome.PENDING:
                self.model[uid] = Outcome.STORED

    @rule()
    def verify(self) -> None:
        self.real.verify("j")
        self.model = {u: Outcome.VERIFIED if s is Outcome.STORED else s for u, s in self.model.items()}

    @rule(held=st.sets(st.sampled_from(UIDS)))
    def miss(self, held: set[str]) -> None:
        self.real.missed("j", {f"{uid}.9" for uid in held}, 10**6)
        for uid, state in self.model.items():
            if state in (Outcome.STORED, Outcome.VERIFIED) and uid not in held:
                self.model[uid] = Outcome.PENDING

    @rule()
    def reopen(self) -> None:
        self.real.reopen("j")
        self.model = {u: Outcome.PENDING if s is Outcome.FAILED else s for u, s in self.model.items()}

    @invariant()
    def agrees(self) -> None:
        found = self.real.page("j", 100)
        assert {one.source: one.state for one in found} == self.model
        assert [one.position for one in found] == sorted({one.position for one in found})
        assert sum(self.real.counts("j").values()) == len(self.model)
        assert set(self.real.pending("j")) == {u for u, s in self.model.items() if s is Outcome.PENDING}


Machine.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
TestMachine = Machine.TestCase


def test_what_is_derived_otherwise_is_done_again(instances: Instances) -> None:
    instances.add("j", rows("1.2", "1.3"))
    instances.announce("j", [Instance("1.2", "1.2.9", digest="d", consistency=51.5)])
    assert instances.pending("j")["1.2"] == Instance("1.2", "1.2.9", digest="d", consistency=51.5)
    instances.settle("j", [Instance("1.2", "", Outcome.STORED)])
    assert instances.add("j", [Instance("1.2", ""), Instance("1.3", "")]) == 0  # not known yet: as it was
    assert instances.counts("j")[Outcome.STORED] == 1
    instances.add("j", [Instance("1.2", "1.2.10")])
    assert instances.pending("j")["1.2"] == Instance("1.2", "1.2.10")


def test_the_last_attempt_fails_an_instance(instances: Instances) -> None:
    instances.add("j", rows("1.2"))
    assert [instances.failed_once("j", "1.2", 3, "pacs_timeout") for _ in range(3)] == [False, False, True]
    [one] = instances.page("j", 1)
    assert (one.state, one.reason) == (Outcome.FAILED, "pacs_timeout")


def test_what_the_pacs_never_keeps_fails(instances: Instances) -> None:
    instances.add("j", rows("1.2"))
    for _ in range(3):
        instances.settle("j", [Instance("1.2", "", Outcome.STORED)])
        instances.missed("j", set(), 3)
    assert instances.found("j", set()) == 0
    assert instances.page("j", 1)[0].reason == "not_kept"


@pytest.mark.parametrize(("count", "every", "expected"), [(1, 20, 1), (20, 20, 1), (21, 20, 2), (5, 1, 5), (0, 20, 0)])
def test_a_sample_is_never_empty(instances: Instances, count: int, every: int, expected: int) -> None:
    instances.add("j", rows(*UIDS[:1], *(f"2.{n}" for n in range(count - 1))) if count else [])
    instances.found("j", {one.derived for one in instances.page("j", 100)})
    assert len(instances.sample("j", every)) == expected


def test_instances_go_with_their_job(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite3")
    instances = Instances(tmp_path / "jobs.sqlite3")
    for job in ("a", "b"):
        store.add(job, "pacs", {"pacs": "main"}, None)
        instances.add(job, rows("1.2"))
    assert instances.jobs_by_status() == {("main", "queued"): (2, None)}
    store.finish("a", State.CANCELLED)
    assert store.remove("a", math.inf)
    assert (instances.page("a", 9), len(instances.page("b", 9))) == ([], 1)
    store.close()


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobsUnavailable):
        Instances(tmp_path / "none").counts("j")


CHANGES = {
    "pacs": "other",
    "study": "1.9",
    "series": "1.9",
    "operation": "superresolve",
    "scale": 2,
    "digest": "cd" * 32,
    "strength": 0.5,
    "sigma": 3.0,
    "precision": "fast",
    "min_consistency": 40.0,
}


@pytest.mark.parametrize("name", [field.name for field in fields(Order) if field.name != "model"])
def test_the_key_depends_on_everything_that_is_asked(name: str) -> None:
    assert replace(ORDER, **{name: CHANGES[name]}).key != ORDER.key
    assert Order(**ORDER.parameters).key == ORDER.key


def test_the_key_of_an_unguarded_job_is_what_it_was() -> None:
    assert ORDER.key == "pacs\n90ee6d10f9c4ac32fae07c926d8281806ac74c6413b435daac8088596eee79ae"


def test_no_header_can_be_a_job_s_key() -> None:
    assert "\n" in ORDER.key
    assert "1.2.3" not in ORDER.key
