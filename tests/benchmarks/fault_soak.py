"""Thousands of requests of all kinds: does memory grow, does anything leak?"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks.client import Reply, Request, closed_loop
from tests.benchmarks.harness import Table, Tree, mib, noisy, picture, serving
from tests.benchmarks.light import write_light
from tests.dicom_objects import dataset_of, file_of, packaged, packaged_in_scope

LARGE_SHARE, BAD_SHARE, DICOM_SHARE = 0.01, 0.05, 0.1
SIDES = (16, 256)  # of all but the large ones
PACKAGED_BYTES = 200_000
REST_S = 2.0
CHUNK = 200  # requests


@dataclass
class Found:
    """Answers by status, and those that should have been others."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


def soak(requests: int = 5000, callers: int = 8, large: int = 1024, seed: int = 1, **settings: Any) -> Table:
    """Mixed sizes and formats through the light network; the server rests before it is looked at. It begins with as
    many large images as there are callers, so that the high-water mark of all that follows comes before 10 %."""
    with TemporaryDirectory() as folder:
        write_light(Path(folder))
        with serving(Path(folder), {"fast_for_8_bit": False, **settings}) as server:
            tree, random_of = Tree(server.process.pid), random.Random(seed)
            source = chain((_large(random_of, large) for _ in range(callers)), mixed(random_of, large))
            first, found = requests // 10, Found()
            rows = [_look(tree, found)]
            for count in (first, requests - first):
                asyncio.run(_ask(server.port, islice(source, count), callers, found))
                time.sleep(REST_S)
                rows.append(_look(tree, found))
    growth = rows[2]["RSS MiB"] / rows[1]["RSS MiB"] - 1
    wrong = [f"{count} x {what}" for what, count in found.wrong.items()]
    notes = [f"Memory from 10 % to 100 %: {growth:+.1%}.", f"Answered as they should not be: {found.wrong.total()}."]
    return Table(f"Soak of {requests} requests", rows, notes + wrong)


async def _ask(port: int, requests: Iterator[Request], callers: int, found: Found) -> None:
    """All requests, some at a time, so that this process need not hold their answers."""
    while some := list(islice(requests, CHUNK)):
        for reply in await closed_loop(port, some, callers):
            found.answers[reply.kind] += 1
            if not _expected(reply):
                found.wrong[f"{reply.kind} {(reply.reason or reply.body[:200])!r}"] += 1


def mixed(random_of: random.Random, large: int) -> Iterator[Request]:
    """Requests without end; `X-Kind` tells good from bad ones."""
    files = [packaged(name) for name in packaged_in_scope(PACKAGED_BYTES)]
    while True:
        share = random_of.random()
        if share < LARGE_SHARE:
            yield _large(random_of, large)
        elif share < LARGE_SHARE + BAD_SHARE:
            yield Request("/denoise", _bad(random_of), {"X-Kind": "bad"})
        elif share < LARGE_SHARE + BAD_SHARE + DICOM_SHARE:
            body = random_of.choice(files) if random_of.random() < 0.5 else _file(random_of, "dicom")
            yield Request("/denoise", body, {"X-Kind": "good"})
        else:
            body = _file(random_of, random_of.choice(["png8", "png", "png", "tiff", "npy"]))
            yield Request(random_of.choice(["/denoise", "/denoise", "/analyze"]), body, {"X-Kind": "good"})


def _large(random_of: random.Random, side: int) -> Request:
    pixels = noisy(side, side, seed=random_of.randrange(2**31))
    return Request("/denoise", picture(pixels), {"X-Kind": "good"})


def _file(random_of: random.Random, format: str) -> bytes:
    rows, columns = (random_of.randint(*SIDES) for _ in range(2))
    seed = random_of.randrange(2**31)
    if format == "png8":
        return picture(noisy(rows, columns, "uint8", seed), "png")
    if format == "dicom":
        return file_of(dataset_of((noisy(rows, columns, seed=seed) >> 5).astype(np.int16)))
    return picture(noisy(rows, columns, seed=seed), format)


def _bad(random_of: random.Random) -> bytes:
    whole = _file(random_of, "png")
    return random_of.choice([b"", random_of.randbytes(1000), whole[: len(whole) // 2], whole[:40]])


def _expected(reply: Reply) -> bool:
    good = reply.request.headers["X-Kind"] == "good"
    return reply.status == 200 if good else 400 <= reply.status < 500


def _look(tree: Tree, found: Found) -> dict[str, Any]:
    sizes = {"RSS MiB": mib(tree.rss()), "of it the API's": mib(tree.rss_of(tree.root))}
    return {"answers": dict(sorted(found.answers.items())), **sizes, **tree.handles(), "processes": len(tree.pids())}
