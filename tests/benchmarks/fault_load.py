"""Callers that hang up, and more of them than the service can serve."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.settings import SHIPPED_BUNDLES
from tests.benchmarks.client import Caller, Request, closed_loop, open_loop
from tests.benchmarks.harness import Table, Tree, kinds, mib, noisy, percentile, picture, serving
from tests.benchmarks.light import write_light

QUIET = 0.05  # share of a core above the idle one that counts as rest
PROBE = {"X-Deadline-Ms": "1"}  # cannot be met
TOLD = ("retry-after", "x-queue-position", "x-queue-seconds")  # what a 429 should tell


def hangup(callers: int = 6, side: int = 1024, after_s: float = 0.3, **settings: Any) -> Table:
    """CPU that the server spends on images whose callers have gone, in images; the shipped denoiser."""
    request = Request("/denoise", picture(noisy(side, side)))
    with serving(SHIPPED_BUNDLES, {"fast_for_8_bit": False, **settings}) as server:
        tree = Tree(server.process.pid)
        asyncio.run(closed_loop(server.port, [request], 1))  # warm
        idle = _idle_share(tree)
        one_s = statistics.median(_cost_of_one(server.port, request, tree) for _ in range(3))
        before = tree.cpu_s()
        asyncio.run(_leave(server.port, request, callers, after_s))
        before = tree.cpu_s() - before
        spent, seconds = _until_rest(tree, idle)
        again = asyncio.run(closed_loop(server.port, [request], 1))
    row = {
        "callers": callers,
        "image": f"{side}x{side}",
        "CPU s of one image": one_s,
        "CPU s before they left": before,
        "CPU s afterwards": spent,
        "in images": round(spent / one_s, 2),
        "seconds until rest": seconds,
        "next request": again[0].kind,
    }
    return Table("Hang-up", [row], [f"They left {after_s} s after the last had sent its image."])


def overload(
    seconds: float = 60.0,
    factor: float = 10.0,
    deadline_ms: int = 5000,
    model: str = "denoise",
    side: int = 256,
    **settings: Any,
) -> Table:
    """Arrivals at random times, `factor` times as many as can be served; `model` is denoise (shipped) or light."""
    with TemporaryDirectory() as folder:
        write_light(Path(folder))
        repository = Path(folder) if model == "light" else SHIPPED_BUNDLES
        with serving(repository, {"fast_for_8_bit": False, **settings}) as server:
            return asyncio.run(_overload(server.port, Tree(server.process.pid), seconds, factor, deadline_ms, side))


async def _overload(port: int, tree: Tree, seconds: float, factor: float, deadline_ms: int, side: int) -> Table:
    body = picture(noisy(side, side))
    request = Request("/denoise", body, {"X-Deadline-Ms": str(deadline_ms)})
    per_s = await _capacity(port, Request("/denoise", body), max(2.0, seconds / 10))
    probe = (await closed_loop(port, [Request("/denoise", body, PROBE)], 1))[0]
    start = tree.rss()
    sampler = asyncio.create_task(_sample(tree, seconds))
    replies = await open_loop(port, repeat(request, round(per_s * factor * seconds)), per_s * factor)
    early, late = await sampler, tree.rss()
    times = [1000 * reply.seconds_sent for reply in replies if reply.status == 200]
    row = {
        "capacity, images/s": round(per_s, 1),
        "arrivals/s": round(per_s * factor, 1),
        "answers": kinds(replies),
        "other than 200 and 429": sum(reply.kind not in ("200", "429") for reply in replies),
        "accepted p50 ms": round(percentile(times, 0.5), 1),
        "accepted p99 ms": round(percentile(times, 0.99), 1),
        "deadline ms": deadline_ms,
        "accepted too late": sum(value > deadline_ms for value in times),
        "RSS MiB before, at 10 %, at 100 %": f"{mib(start)}, {mib(early)}, {mib(late)}",
    }
    refused = next((reply.headers for reply in replies if reply.status == 429), {})
    told = [f"{name}: {refused[name]}" for name in TOLD if name in refused]
    notes = [f"A deadline of 1 ms is answered {probe.kind}. The first 429 tells {', '.join(told) or 'nothing'}."]
    if probe.status == 200:
        notes.append("This version does not know X-Deadline-Ms: nothing holds the accepted to their deadline.")
    return Table(f"Overload for {seconds:.0f} s", [row], notes)


async def _capacity(port: int, request: Request, seconds: float) -> float:
    """Images a second that four callers get."""
    stop = time.monotonic() + seconds
    waiting = iter(lambda: request if time.monotonic() < stop else None, None)
    start = time.monotonic()
    replies = await closed_loop(port, waiting, 4)
    return sum(reply.status == 200 for reply in replies) / (time.monotonic() - start)


async def _sample(tree: Tree, seconds: float) -> int:
    """Resident bytes after a tenth of the time."""
    await asyncio.sleep(seconds / 10)
    return tree.rss()


def _idle_share(tree: Tree, seconds: float = 2.0) -> float:
    """Cores that the server uses at rest."""
    before = tree.cpu_s()
    time.sleep(seconds)
    return (tree.cpu_s() - before) / seconds


def _cost_of_one(port: int, request: Request, tree: Tree) -> float:
    before = tree.cpu_s()
    asyncio.run(closed_loop(port, [request], 1))
    return tree.cpu_s() - before


async def _leave(port: int, request: Request, count: int, after_s: float) -> None:
    callers = [Caller(port) for _ in range(count)]
    await asyncio.gather(*(caller.send(request) for caller in callers))
    await asyncio.sleep(after_s)
    for caller in callers:
        caller.close()


def _until_rest(tree: Tree, idle: float, most_s: float = 300.0) -> tuple[float, float]:
    """CPU seconds above the idle ones until the server rests for a second, and how long that took."""
    start, first = time.monotonic(), tree.cpu_s()
    last, rest, spent = first, start, 0.0
    while time.monotonic() - rest < 1.0 and time.monotonic() - start < most_s:
        time.sleep(0.2)
        now = tree.cpu_s()
        if now - last > 0.2 * (idle + QUIET):
            rest = time.monotonic()
            spent = now - first - idle * (rest - start)
        last = now
    return max(0.0, spent), rest - start
