"""Workers that are killed, and a server that is told to stop, both under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from itertools import pairwise, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.benchmarks.client import Reply, Request, closed_loop, repeat_until
from tests.benchmarks.harness import Table, Tree, kinds, noisy, picture, serving, spread
from tests.benchmarks.light import write_light
from tests.e2e.server import Server

SETTINGS = {"fast_for_8_bit": False}
BACKLOG_S = 0.1  # a connection this young when the listener closed may never have been taken up


def kill(rounds: int = 20, callers: int = 32, side: int = 512, after_s: float = 0.3, **settings: Any) -> Table:
    """`kill -9` of a worker with `callers` requests in flight; the light network."""
    request, replies, silences = Request("/denoise", picture(noisy(side, side))), list[Reply](), list[float]()
    with TemporaryDirectory() as folder:
        write_light(Path(folder))
        with serving(Path(folder), {**SETTINGS, **settings}) as server:
            tree = Tree(server.process.pid)
            for _ in range(rounds):
                found, silence = asyncio.run(_kill_once(server.port, tree, request, callers, after_s))
                replies += found
                silences.append(silence)
                server.wait_ready()
    row = {
        "rounds": rounds,
        "requests": len(replies),
        "lost": sum(reply.status != 200 for reply in replies),
        "answers": kinds(replies),
        "longest silence after the kill, s": spread(silences),
    }
    reasons = Counter(reply.reason or reply.body[:200].decode() for reply in replies if reply.status != 200)
    return Table("kill -9 of a worker", [row], [f"{count} x {reason}" for reason, count in reasons.items()])


async def _kill_once(
    port: int, tree: Tree, request: Request, callers: int, after_s: float
) -> tuple[list[Reply], float]:
    """Replies, and the longest time after the kill in which none came."""
    load = asyncio.create_task(closed_loop(port, repeat(request, callers), callers))
    await asyncio.sleep(after_s)
    os.kill(random.choice(tree.workers()), signal.SIGKILL)
    killed = time.monotonic()
    replies = await load
    times = sorted([killed, *(reply.end for reply in replies if reply.end > killed)])
    return replies, max((later - before for before, later in pairwise(times)), default=0.0)


def drain(
    callers: int = 16, side: int = 256, warm_s: float = 2.0, drain_delay_s: float = 2.0, **settings: Any
) -> Table:
    """SIGTERM while callers ask, each time over a new connection; the light network."""
    request = Request("/denoise", picture(noisy(side, side)))
    with TemporaryDirectory() as folder:
        write_light(Path(folder))
        with serving(Path(folder), {**SETTINGS, "drain_delay_s": drain_delay_s, **settings}) as server:
            return asyncio.run(_drain(server, request, callers, warm_s))


async def _drain(server: Server, request: Request, callers: int, warm_s: float) -> Table:
    ended = asyncio.Event()
    load = asyncio.create_task(closed_loop(server.port, repeat_until(ended, request), callers, fresh=True))
    await asyncio.sleep(warm_s)
    server.process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    readiness = asyncio.create_task(_readiness(server.url, ended))
    status = await asyncio.to_thread(server.process.wait, 120)
    seconds = time.monotonic() - told
    ended.set()
    replies, seen = await load, await readiness
    refused = [reply.start for reply in replies if reply.outcome == "refused"]
    closed = min([*refused, seen.get("refused", told + seconds)])
    lost = [reply for reply in replies if reply.outcome == "lost"]
    young = sum(reply.start > closed - BACKLOG_S for reply in lost)
    row = {
        "answers": kinds(replies),
        "lost": len(lost),
        "of them sent as the listener closed": young,
        "exit status": status,
        "seconds to the exit": round(seconds, 2),
        "ready turned 503 after s": round(seen["503"] - told, 2) if "503" in seen else "never seen",
        "listener closed after s": round(closed - told, 2),
        "answered after the signal": sum(reply.status == 200 and reply.end > told for reply in replies),
    }
    notes = [f"{count} x {reason}" for reason, count in Counter(reply.reason for reply in lost).items()]
    return Table(f"SIGTERM under load of {callers} callers", [row], notes)


async def _readiness(url: str, ended: asyncio.Event) -> dict[str, float]:
    """What readiness answers -> when it did so first."""
    seen: dict[str, float] = {}
    while not ended.is_set():
        seen.setdefault(await asyncio.to_thread(_ready, url), time.monotonic())
        await asyncio.sleep(0.02)
    return seen


def _ready(url: str) -> str:
    try:
        with urlopen(f"{url}/healthz/ready", timeout=5) as answer:
            return str(answer.status)
    except HTTPError as error:
        return str(error.code)
    except (URLError, OSError):
        return "refused"
