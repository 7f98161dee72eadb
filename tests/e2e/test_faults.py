"""Short runs of `make faults`: what must never happen, whatever the speed."""

from tests.benchmarks.fault_crash import drain, kill
from tests.benchmarks.fault_image import determinism
from tests.benchmarks.fault_load import overload
from tests.benchmarks.fault_soak import soak
from tests.benchmarks.fault_swap import swap

ONE_THREAD = {"threads": 1}


def test_no_request_is_lost_with_its_worker() -> None:
    (row,) = kill(rounds=2, callers=8, side=256, **ONE_THREAD).rows
    assert row["requests"] == 16
    assert row["lost"] == 0, row


def test_no_request_is_lost_at_a_stop() -> None:
    (row,) = drain(callers=6, side=128, warm_s=0.5, drain_delay_s=0.5, **ONE_THREAD).rows
    assert row["exit status"] == 0
    assert row["lost"] == row["of them sent as the listener closed"], row  # those the kernel alone had seen
    assert set(row["answers"]) <= {"200", "503", "refused", "lost"}, row


def test_no_request_fails_while_versions_change_and_each_is_answered_by_the_one_it_names() -> None:
    (row,) = swap(cycles=1, callers=3, side=64, **ONE_THREAD).rows
    assert row["failed"] == 0, row
    assert row["wrong version"] == 0, row
    assert row["switches"] == 3


def test_overload_is_answered_200_or_429() -> None:
    (row,) = overload(seconds=3, model="light", requests=6, deadline_ms=60_000, **ONE_THREAD).rows
    assert row["other than 200 and 429"] == 0, row
    assert row["answers"].get("200", 0) > 0


def test_every_kind_of_request_is_answered_as_it_should_be() -> None:
    table = soak(requests=60, callers=4, large=300, **ONE_THREAD)
    assert "Answered as they should not be: 0." in table.notes, table.notes
    assert len({row["processes"] for row in table.rows}) == 1


def test_an_image_is_the_same_alone_and_among_others() -> None:
    table = determinism(images=3, **ONE_THREAD)
    assert all(row["differing"] == 0 and set(row["answers"]) == {"200"} for row in table.rows), table.rows
