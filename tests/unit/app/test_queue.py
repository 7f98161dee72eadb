"""The queue and its room: nothing is lost, nothing comes twice, batches are of one kind, order is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.admission import Drain, Paces, QueueLimits, Room, Usage
from app.queue import Entry, WorkQueue
from app.work import Priority, WorkItem


def item(side: int = 8, **options) -> WorkItem:
    options = {
        "digest": "a" * 64,
        "graph": "restore",
        "arrays": {"image": np.zeros((1, 1, side, side), np.float32)},
    } | options
    return WorkItem(**options)


def test_items_share_a_key_only_where_all_that_matters_agrees():
    small = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    variants = [
        item(),
        item(side=16),
        item(digest="b" * 64),
        item(graph="estimate"),
        item(precision="bf16"),
        item(arrays={"image": np.zeros((1, 1, 8, 8), np.float64)}),
        item(arrays={**small, "strength": np.ones(1, np.float32)}),
    ]
    assert len({variant.key for variant in variants}) == len(variants)
    assert item().key == item(priority=Priority.BULK, deadline=1.0).key


@pytest.mark.parametrize("arrays", [{}, {"image": np.zeros((2, 1, 8, 8))}, {"strength": np.float32(1)}])
def test_arrays_that_cannot_be_batched_are_refused(arrays):
    with pytest.raises(ValueError, match="leading dimension is 1"):
        item(arrays=arrays)


def test_usage_counts_the_largest_array_and_all_bytes():
    arrays = {"image": np.zeros((1, 1, 8, 4), np.float32), "strength": np.ones(1, np.float32)}
    assert item(arrays=arrays).usage == Usage(1, 32, 33 * 4)


class QueueMachine(RuleBasedStateMachine):
    """Random pushes, removals and cuts against a plain list."""

    waiting = Bundle("waiting")

    def __init__(self) -> None:
        super().__init__()
        self.queue: WorkQueue[Entry] = WorkQueue()
        self.model: list[Entry] = []
        self.order = 0

    @rule(
        target=waiting,
        side=st.sampled_from([8, 16]),
        priority=st.sampled_from(Priority),
        alone=st.booleans(),
        precision=st.sampled_from(["fp32", "bf16"]),
        due=st.integers(0, 9),
    )
    def push(self, side: int, priority: Priority, alone: bool, precision: str, due: float) -> Entry:
        self.order += 1
        entry = Entry(item(side, priority=priority, precision=precision), self.order, due, alone=alone)
        self.queue.push(entry)
        self.model.append(entry)
        return entry

    @rule(entry=consumes(waiting))
    def discard(self, entry: Entry) -> None:
        assert self.queue.discard(entry) == (entry in self.model)
        assert not self.queue.discard(entry)
        self.model = [other for other in self.model if other is not entry]

    @rule(items=st.integers(1, 5), pixels=st.integers(1, 1000))
    def cut(self, items: int, pixels: int) -> None:
        head = self.queue.head()
        assert (head is None) == (not self.model)
        if head is not None:
            batch = self.queue.cut(head, items, pixels)
            self.check_batch(batch, items, pixels)
            self.model = [entry for entry in self.model if entry not in batch]

    @rule(precision=st.sampled_from(["fp32", "bf16"]))
    def head_of(self, precision: str) -> None:
        fitting = [entry for entry in self.model if entry.item.precision == precision]
        expected = min(fitting, key=lambda entry: (entry.due, entry.order), default=None)
        assert self.queue.head(lambda entry: entry.item.precision == precision) is expected

    def check_batch(self, batch: list[Entry], items: int, pixels: int) -> None:
        def rank(entry: Entry) -> tuple[float, int]:
            return entry.due, entry.order

        head = min(self.model, key=rank)
        mates = [entry for entry in self.model if entry.key == head.key and not entry.alone]
        room = max(1, min(items, pixels // head.pixels))
        expected = [head] if head.alone else sorted(mates, key=rank)[:room]
        assert batch == expected

    @rule()
    def drain(self) -> None:
        assert set(self.queue.drain()) == set(self.model)
        self.model = []

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.items == len(self.model)
        assert self.queue.pixels == sum(entry.pixels for entry in self.model)


TestQueue = QueueMachine.TestCase


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 500), st.integers(1, 500), st.booleans()), max_size=40))
def test_room_never_holds_more_than_its_limits_but_takes_one_of_any_size(requests):
    limits = QueueLimits(items=40, pixels=600, bytes=800)
    room, held = Room(limits), []
    for items, pixels, size, give_back in requests:
        wanted = Usage(items, pixels, size)
        overflow = room.overflow(wanted)
        if overflow is None:
            held.append(room.take(wanted))
        else:
            assert held
            assert overflow[0] in ("items", "pixels", "bytes")
            assert 0 < overflow[1] <= 1
        if len(held) > 1:
            assert room.used.items <= limits.items
            assert room.used.pixels <= limits.pixels
            assert room.used.bytes <= limits.bytes
        if give_back and held:
            held.pop().release()
    for admission in held:
        admission.release()
    assert room.used == Usage()


def test_a_request_larger_than_the_limits_is_taken_when_nothing_else_is_there():
    room = Room(QueueLimits(items=10, pixels=100, bytes=100))
    large = Usage(50, 5000, 5000)
    with room.take(Usage(1, 1, 1)):
        assert room.overflow(large) is not None
    assert room.overflow(large) is None


def test_admission_gives_its_room_back_once():
    room = Room(QueueLimits())
    admission = room.take(Usage(2, 20, 200))
    assert admission.open
    with admission:
        assert room.used == Usage(2, 20, 200)
    admission.release()
    assert not admission.open
    assert room.used == Usage()


def test_each_model_has_the_pace_that_was_measured_of_it():
    paces = Paces()
    assert paces.seconds_for("a", 1_000_000) == pytest.approx(2.0)
    for _ in range(100):
        paces.record("a", pixels=2_000_000, seconds=0.5)
        paces.record("b", pixels=1_000_000, seconds=2.0)
    assert paces.seconds_for("a", 4_000_000) == pytest.approx(1.0, rel=1e-3)
    assert paces.seconds_for("b", 4_000_000) == pytest.approx(8.0, rel=1e-3)
    assert paces.seconds_for("c", 3_000_000) == pytest.approx(2.5, rel=1e-3)  # as all others together


def test_the_backlog_is_what_the_open_requests_still_need():
    room = Room(QueueLimits())
    room.paces.record("a", 1_000_000, 1.0)
    first = room.take(Usage(1, 10, 10), "a", 3_000_000)
    assert first.position == 0
    first.spent_s = 1.0
    second = room.take(Usage(1, 10, 10), "a", 1_000_000)
    assert second.position == 1
    assert room.backlog_s == pytest.approx(3.0)
    first.spent_s = 9.0  # longer than was thought: it cannot need less than nothing
    assert room.backlog_s == pytest.approx(1.0)
    second.spent_s = 3.0
    second.complete()
    assert room.paces.seconds_for("a", 1_000_000) == pytest.approx(3.9 / 1.9)


def test_the_drain_is_measured_while_there_is_work_alone():
    times = iter([10.0, 12.0, 13.0, 50.0, 53.0])
    drain = Drain(lambda: next(times))
    assert (drain.factor, drain.request_s) == (None, 0.0)
    drain.start()  # at 10
    drain.record(1.0)  # at 12
    assert (drain.factor, drain.request_s) == (2.0, 1.0)
    drain.record(0.5)  # at 13
    assert drain.factor == pytest.approx((0.9 * 2 + 1) / (0.9 * 1 + 0.5))
    drain.rest()
    drain.start()  # at 50: nothing was to be done meanwhile
    before = drain.factor
    drain.record(1.5)  # at 53
    assert drain.factor == pytest.approx((0.9 * 2.8 + 3) / (0.9 * 1.4 + 1.5))
    assert drain.factor == pytest.approx(before)
