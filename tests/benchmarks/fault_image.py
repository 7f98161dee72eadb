"""Images alone and among others, and images larger than all others."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from app.settings import SHIPPED_BUNDLES
from tests.benchmarks.client import Reply, Request, closed_loop
from tests.benchmarks.harness import Table, Tree, kinds, mib, noisy, picture, serving
from tests.dicom_objects import dataset_of, file_of

BUNDLES = {
    "denoise": "/denoise",
    "superresolve-x2": "/superresolve?scale=2",
    "superresolve-x4": "/superresolve?scale=4",
}
SIZES = [(96, 96), (130, 70), (64, 200), (33, 47), (128, 128), (200, 180), (256, 256), (300, 90)]


def determinism(images: int = 32, rounds: int = 1, **settings: Any) -> Table:
    """Every image of a crowd alone and among the others, in exact mode; for each shipped bundle."""
    crowds = {"equal sizes": [SIZES[0]] * images, "mixed sizes": (SIZES * images)[:images]}
    rows = []
    with serving(SHIPPED_BUNDLES, {"fast_for_8_bit": False, **settings}) as server:
        for name, path in BUNDLES.items():
            for crowd, sizes in crowds.items():
                rows.append({"bundle": name, "crowd": crowd, **_compare(server.port, path, sizes, rounds)})
    return Table("The same image alone and among others", rows, [f"{images} images at once; settings {settings}."])


def _compare(port: int, path: str, sizes: list[tuple[int, int]], rounds: int) -> dict[str, Any]:
    joint = "&" if "?" in path else "?"
    files = [picture(noisy(rows, columns, seed=seed)) for seed, (rows, columns) in enumerate(sizes)]
    requests = [Request(f"{path}{joint}precision=exact", data) for data in files]
    alone = {reply.request.body: reply for reply in asyncio.run(closed_loop(port, requests, 1))}
    together: list[Reply] = []
    for _ in range(rounds):
        together += asyncio.run(closed_loop(port, requests, len(requests)))
    differing = sum(alone[reply.request.body].body != reply.body for reply in together)
    return {"compared": len(together), "differing": differing, "answers": kinds([*alone.values(), *together])}


def large(side: int = 4096, **settings: Any) -> Table:
    """One large 16-bit image as PNG and as DICOM through the shipped denoiser and x2, each on a server of its own."""
    pixels = noisy(side, side)
    files = {"PNG": picture(pixels), "DICOM": file_of(dataset_of(pixels))}
    rows = [
        {"task": path, "format": format, "side": side, **alone(Request(path, data), settings)}
        for path in (BUNDLES["denoise"], BUNDLES["superresolve-x2"])
        for format, data in files.items()
    ]
    notes = ["Peaks are VmHWM of each process; their sum is more than was ever resident at one time, if anything."]
    return Table("One large image", rows, notes)


def alone(request: Request, settings: dict[str, Any], repository: Path = SHIPPED_BUNDLES) -> dict[str, Any]:
    """What one request to a server of its own takes."""
    with serving(repository, {"timeout_s": 1800.0, **settings}) as server:
        tree = Tree(server.process.pid)
        idle, cpu, start = tree.rss(), tree.cpu_s(), time.monotonic()
        reply = asyncio.run(closed_loop(server.port, [request], 1))[0]
        seconds, peaks = time.monotonic() - start, sorted(map(mib, tree.peaks().values()), reverse=True)
        cpu = tree.cpu_s() - cpu
    return {
        "answer": reply.kind if reply.status == 200 else f"{reply.kind} {reply.body[:200].decode()} {reply.reason}",
        "seconds": round(seconds, 1),
        "CPU s": round(cpu, 1),
        "RSS MiB at rest": mib(idle),
        "peak MiB by process": ", ".join(map(str, peaks)),
        "sum of peaks MiB": sum(peaks),
    }
