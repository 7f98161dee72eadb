"""Failures per address."""

from __future__ import annotations

import pytest

from app.throttle import ADDRESSES, WINDOW_S, Throttle, group_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_address_may_fail_so_often_in_a_window_and_others_go_free() -> None:
    clock = Clock()
    throttle = Throttle(3, clock)
    assert [throttle.failed("192.0.2.1") for _ in range(3)] == [False, False, True]
    clock.now += 20
    assert throttle.wait_s("192.0.2.1") == WINDOW_S - 20
    assert throttle.wait_s("192.0.2.2") == 0
    clock.now += WINDOW_S - 20
    assert throttle.wait_s("192.0.2.1") == 0
    assert throttle.failed("192.0.2.1") is False


def test_the_table_is_bounded_and_forgets_who_failed_longest_ago() -> None:
    throttle = Throttle(1, Clock())
    for index in range(ADDRESSES + 10):
        throttle.failed(f"10.0.{index // 256}.{index % 256}")
    assert len(throttle) == ADDRESSES
    assert throttle.wait_s("10.0.0.0") == 0
    assert throttle.wait_s("10.0.16.5") > 0


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_a_subscriber_counts_once(address: str, group: str) -> None:
    assert group_of(address) == group
