"""Served images against the bare network loop, beside LitServe and a plain FastAPI server:

    python -m tests.benchmarks.serving [--rounds 3] [--seconds 6] [--callers 1 8 32] [--half-load 20] [--json FILE]

16-bit PNG in and out, one worker, one onnxruntime thread, for a light network made on the spot and the shipped
denoiser. All contestants take turns in every round and share the cores with the client, so the first figure is CPU:
of the whole process tree of a server, per image, over that of a loop in this process that runs the same graphs on
the same arrays (`bare`); of the codec alone stands beside it, and what a server spends beyond both. Images per
second over those of the bare loop follow. The rivals' servers give no evidence and cut no tiles. Medians, smallest and
largest over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from urllib.error import URLError
from urllib.request import urlopen

from app.settings import SHIPPED_BUNDLES
from models.bundle import find_bundle
from tests.benchmarks.bare import Bare, Cost
from tests.benchmarks.client import Reply, Request, closed_loop, open_loop
from tests.benchmarks.harness import Table, Tree, add_common, finish, kinds, noisy, percentile, picture, serving, spread
from tests.benchmarks.light import write_light
from tests.e2e.server import ROOT, free_port

OURS = "medrestore"
SIZES = {"256x256": [(256, 256)] * 5, "mixed": [(64, 64), (96, 160), (200, 150), (256, 192), (256, 256)]}
ANCHORS = "On a quiet machine, 32 callers, images/s over bare: plain FastAPI 0.79, LitServe 0.57, Ray Serve 0.41."
SETTINGS = {"threads": 1, "fast_for_8_bit": False, "repository_poll": 0.0, "timeout_s": 600.0}


@dataclass(frozen=True)
class Contestant:
    """A server that is up."""

    name: str
    port: int
    tree: Tree


@dataclass
class Measured:
    """Of one contestant at one number of callers: one value a round."""

    cpu_s: list[float] = field(default_factory=list)
    beyond_s: list[float] = field(default_factory=list)
    cpu_ratio: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    wall_ratio: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def add(self, replies: list[Reply], cpu_s: float, wall_s: float, bare: Cost, codec: Cost) -> None:
        done = max(1, sum(reply.status == 200 for reply in replies))
        self.answers.update(kinds(replies))
        self.cpu_s.append(cpu_s / done)
        self.beyond_s.append(cpu_s / done - bare.cpu_s - codec.cpu_s)
        self.cpu_ratio.append(cpu_s / done / bare.cpu_s)
        self.per_s.append(done / wall_s)
        self.wall_ratio.append(done / wall_s * bare.wall_s)


@contextmanager
def rival(name: str, repository: Path, model: str) -> Iterator[Contestant]:
    """One of the servers of `rival_*.py`, ready."""
    port = free_port()
    script = [sys.executable, "-m", f"tests.benchmarks.rival_{name}", "--port", str(port)]
    command = [*script, "--repository", str(repository), "--model", model]
    with TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        tree = Tree(process.pid)
        try:
            while not answers(port):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"{name} ended: {log.read().decode()}")
                time.sleep(0.2)
            yield Contestant(name, port, tree)
        finally:
            for pid in tree.pids():  # all of them: LitServe's children outlive a SIGTERM of their parent
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def contestants(names: Sequence[str], repository: Path, model: str) -> Iterator[list[Contestant]]:
    """All that can be had, ready."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(repository, {**SETTINGS, "denoise_model": model}))
        found = [Contestant(OURS, server.port, Tree(server.process.pid))]
        for name in names:
            if find_spec(name) is None:
                print(f"left out: {name} is not installed: pip install 'medrestore[bench]'", file=sys.stderr)
            else:
                found.append(stack.enter_context(rival(name, repository, model)))
        yield found


def requests_of(files: Sequence[bytes]) -> Iterator[Request]:
    """The files again and again."""
    return cycle([Request("/denoise", data, {"Content-Type": "image/png"}) for data in files])


def measure(one: Contestant, requests: Iterator[Request], count: int, callers: int) -> tuple[list[Reply], float, float]:
    """Replies, CPU seconds of the tree, wall seconds."""
    cpu, wall = one.tree.cpu_s(), time.perf_counter()
    replies = asyncio.run(closed_loop(one.port, islice(requests, count), callers))
    wall = time.perf_counter() - wall
    time.sleep(0.1)  # what follows an answer belongs to it
    return replies, one.tree.cpu_s() - cpu, wall


def throughput(
    running: list[Contestant], bare: Bare, files: Sequence[bytes], callers: Sequence[int], rounds: int, seconds: float
) -> dict[tuple[str, int], Measured]:
    """All contestants at all numbers of callers, in turns. Raises RuntimeError where one cannot answer."""
    found = {(one.name, count): Measured() for count in callers for one in running}
    network, codec = bare.network(), bare.codec()
    count = max(len(files), round(seconds / (network.wall_s + codec.wall_s)))
    for one in running:
        replies, *_ = measure(one, requests_of(files), 2 * len(files), 2)  # which also warms it up
        if failures := [reply for reply in replies if reply.status != 200]:
            raise RuntimeError(f"{one.name} answers {failures[0].kind}: {failures[0].body[:300]!r}")
    for _ in range(rounds):
        for together in callers:
            for one in running:
                before, codec = bare.network(), bare.codec()
                replies, cpu_s, wall_s = measure(one, requests_of(files), count, together)
                after = bare.network()
                mean = Cost((before.cpu_s + after.cpu_s) / 2, (before.wall_s + after.wall_s) / 2)
                found[one.name, together].add(replies, cpu_s, wall_s, mean, codec)
    return found


def rows_of(found: dict[tuple[str, int], Measured]) -> list[dict[str, object]]:
    return [
        {
            "server": name,
            "callers": callers,
            "CPU over bare": spread(one.cpu_ratio),
            "CPU ms/image": spread([1000 * s for s in one.cpu_s], 1),
            "beyond network and codec, ms": spread([1000 * s for s in one.beyond_s], 1),
            "images/s": spread(one.per_s, 1),
            "images/s over bare": spread(one.wall_ratio),
            "answers": one.answers,
        }
        for (name, callers), one in found.items()
    ]


def half_load(one: Contestant, files: Sequence[bytes], per_s: float, seconds: float) -> dict[str, object]:
    """Latency with arrivals at random times, half as many as the contestant can serve."""
    count = max(10, round(per_s / 2 * seconds))
    replies = asyncio.run(open_loop(one.port, islice(requests_of(files), count), per_s / 2))
    times = [1000 * reply.seconds for reply in replies if reply.status == 200]
    middle, late = percentile(times, 0.5), percentile(times, 0.99)
    return {
        "server": one.name,
        "arrivals/s": round(per_s / 2, 1),
        "p50 ms": round(middle, 1),
        "p99 ms": round(late, 1),
        "p99 over p50": late / middle,
        "answers": kinds(replies),
    }


def compare(repository: Path, model: str, sizes: str, options: argparse.Namespace) -> list[Table]:
    """Both tables of one network and one set of sizes."""
    bundle = find_bundle(repository, model)
    files = [picture(noisy(rows, columns, seed=seed)) for seed, (rows, columns) in enumerate(SIZES[sizes])]
    bare = Bare(bundle, files)
    network, codec = bare.network(), bare.codec()
    useful = sum(rows * columns for rows, columns in SIZES[sizes]) / bare.pixels
    about = f"{bundle.reference}, {sizes}"
    table, latency = Table(f"{about}: throughput"), Table(f"{about}: latency at half load")
    with contestants(options.servers, repository, model) as running:
        found = throughput(running, bare, files, options.callers, options.rounds, options.seconds)
        table.rows = rows_of(found)
        table.values = {f"{name}, {callers} callers": vars(one) for (name, callers), one in found.items()}
        for one in running if options.half_load else []:
            most = max(statistics.median(m.per_s) for (name, _), m in found.items() if name == one.name)
            latency.rows.append(half_load(one, files, most, options.half_load))
    costs = f"network {1000 * network.cpu_s:.1f} ms, codec {1000 * codec.cpu_s:.1f} ms of CPU per image"
    table.notes = [f"Bare loop: {costs}; {useful:.0%} of the pixels that {OURS} runs are the image's."]
    if (model, sizes) == ("light", "256x256"):
        table.notes.append(ANCHORS)
    return [each for each in (table, latency) if each.rows]


def compare_all(options: argparse.Namespace) -> Iterator[Table]:
    """The tables of all networks and sizes, as they are measured."""
    with TemporaryDirectory() as folder:
        write_light(Path(folder))
        for model in options.models:
            repository = Path(folder) if model == "light" else SHIPPED_BUNDLES
            for sizes in options.sizes:
                yield from compare(repository, model, sizes, options)


def main() -> None:
    parser = argparse.ArgumentParser(description="Served images against the bare network loop and other servers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of bare work in one measurement, about")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--half-load", type=float, default=20.0, help="seconds of arrivals; 0: none")
    parser.add_argument("--models", nargs="+", default=["light", "denoise"], choices=("light", "denoise"))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--servers", nargs="*", default=["litserve", "fastapi"], choices=("litserve", "fastapi"))
    add_common(parser)
    options = parser.parse_args()
    finish(compare_all(options), options.json)


if __name__ == "__main__":
    main()
