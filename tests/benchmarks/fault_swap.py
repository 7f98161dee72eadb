"""New versions, promotions and roll-backs of a model that is being used."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.bundle import promote, read_bundle
from tests.benchmarks.client import Reply, Request, closed_loop, repeat_until
from tests.benchmarks.harness import Table, Tree, kinds, mib, noisy, picture, serving, spread
from tests.benchmarks.light import write_light

POLL_S, LIMIT_S = 0.1, 120.0


@dataclass
class Truth:
    """What each version must answer."""

    digests: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    def wrong(self, reply: Reply) -> str | None:
        """What is wrong with an answer, or None."""
        model = reply.headers.get("x-model", "")
        if self.digests.get(model) != reply.headers.get("x-model-digest"):
            return f"the digest is not that of {model or 'any model'}"
        return None if self.bodies[model] == reply.body else f"the pixels are not those of {model}"


def swap(cycles: int = 5, callers: int = 8, side: int = 128, **settings: Any) -> Table:
    """Each cycle publishes a version of the light network, promotes it, rolls back and promotes it again."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_light(root / "served")
        promote(root / "served", "light", "1")
        ours = {"fast_for_8_bit": False, "repository_poll": POLL_S}
        with serving(root / "served", {**ours, **settings}) as server:
            request = Request("/denoise", picture(noisy(side, side)))
            return asyncio.run(_swap(root, server.port, Tree(server.process.pid), request, cycles, callers))


async def _swap(root: Path, port: int, tree: Tree, request: Request, cycles: int, callers: int) -> Table:
    truth, ended, switches = Truth(), asyncio.Event(), list[float]()
    await _publish(root, port, request, truth, "1")
    before = tree.rss()
    load = asyncio.create_task(closed_loop(port, repeat_until(ended, request), callers))
    try:
        for version in map(str, range(2, cycles + 2)):
            await _publish(root, port, request, truth, version)
            for chosen in (version, str(int(version) - 1), version):
                switches.append(await _promote(root, port, request, chosen))
    finally:
        ended.set()
        replies = await load
    answered = [reply for reply in replies if reply.status == 200]
    wrong = Counter(filter(None, map(truth.wrong, answered)))
    row = {
        "versions": cycles + 1,
        "switches": len(switches),
        "requests": len(replies),
        "failed": len(replies) - len(answered),
        "answers": kinds(replies),
        "wrong version": wrong.total(),
        "seconds from promotion to its first answer": spread(switches),
        "RSS MiB before and after": f"{mib(before)}, {mib(tree.rss())}",
    }
    by_version = Counter(reply.headers.get("x-model", "") for reply in answered)
    told = Counter(reply.reason or reply.body[:200].decode() for reply in replies if reply.status != 200)
    row["answers by version"] = dict(sorted(by_version.items()))
    notes = [f"{count} x {cause}" for causes in (wrong, told) for cause, count in causes.items()]
    return Table("Versions published, promoted and rolled back", [row], notes)


async def _publish(root: Path, port: int, request: Request, truth: Truth, version: str) -> None:
    """Puts a version beside the others, whole at once, and waits until it answers to its name."""
    folder = root / "served" / "light" / version
    if not folder.exists():
        (await asyncio.to_thread(write_light, root / "made", version)).rename(folder)
    reference = f"light@{version}"
    pinned = Request(f"{request.path}?model={reference}", request.body)
    reply = await _answer(port, pinned, lambda reply: reply.status == 200)
    truth.digests[reference], truth.bodies[reference] = read_bundle(folder).digest, reply.body


async def _promote(root: Path, port: int, request: Request, version: str) -> float:
    """Seconds until the first answer of the version."""
    await asyncio.to_thread(promote, root / "served", "light", version)
    start = time.monotonic()
    await _answer(port, request, lambda reply: reply.headers.get("x-model") == f"light@{version}")
    return time.monotonic() - start


async def _answer(port: int, request: Request, wanted: Callable[[Reply], bool]) -> Reply:
    """Asks until the wanted answer comes. Raises TimeoutError."""
    stop = time.monotonic() + LIMIT_S
    while time.monotonic() < stop:
        reply = (await closed_loop(port, [request], 1))[0]
        if wanted(reply):
            return reply
        await asyncio.sleep(POLL_S)
    raise TimeoutError(
        f"{request.path} was not answered as it should within {LIMIT_S:.0f} s: {reply.kind} {reply.body[:300]!r}"
    )
