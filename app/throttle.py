"""How often an address may fail to name a key: a bounded table, so that failing costs the service nothing."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

WINDOW_S = 60.0
ADDRESSES = 4096  # in the table; the one that failed longest ago is forgotten first
IPV6_PREFIX = 64  # what one subscriber has; within it, addresses are free


class _Failures(NamedTuple):
    times: int
    since: float


class Throttle:
    """Counts failures per address over a window.

    Only failures are refused. A right key always passes: it cannot be guessed, and callers who share an address must
    not suffer for one of them.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._table: OrderedDict[str, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def wait_s(self, address: str) -> float:
        """Seconds until a failure of this address is answered again; 0 where it is now."""
        times, since = self._of(group_of(address))
        return since + WINDOW_S - self._clock() if times >= self._most else 0.0

    def failed(self, address: str) -> bool:
        """Books a failure; true where it is the last that is answered."""
        group = group_of(address)
        times, since = self._of(group)
        self._table[group] = _Failures(times + 1, since)
        self._table.move_to_end(group)
        if len(self._table) > ADDRESSES:
            self._table.popitem(last=False)
        return times + 1 == self._most

    def _of(self, group: str) -> _Failures:
        now = self._clock()
        found = self._table.get(group)
        return found if found and now - found.since < WINDOW_S else _Failures(0, now)


def group_of(address: str) -> str:
    """The network that counts as one caller: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a socket file, or what a proxy sent
        return address[:64]
    if parsed.version == 4:
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed.packed, IPV6_PREFIX), strict=False))
