"""What all benchmarks share: a server as a process, what its process tree costs, tables, the machine in words."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from app.settings import Settings
from models.imaging.codec import decode, encode
from tests.benchmarks.client import Reply
from tests.e2e.server import Server, children
from tests.reference_images import npy

START_S = 600.0  # a busy machine takes its time
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PACKAGES = ("onnxruntime", "openvino", "fastapi", "uvicorn", "litserve", "imagecodecs", "numpy")


@dataclass(frozen=True)
class Tree:
    """A process with all its descendants (Linux)."""

    root: int

    def pids(self) -> list[int]:
        return [self.root, *sorted(children(self.root))]

    def workers(self) -> list[int]:
        """The processes that `multiprocessing` spawned."""
        return [pid for pid in self.pids() if "spawn_main" in _text(pid, "cmdline")]

    def cpu_s(self) -> float:
        """CPU seconds so far, of those that live and of those that ended and were waited for."""
        fields = (_text(pid, "stat").rpartition(")")[2].split() for pid in self.pids())
        return sum(sum(map(int, values[11:15])) for values in fields if values) * TICK_S

    def rss(self) -> int:
        """Resident bytes; memory that processes share counts in each."""
        return sum(map(self.rss_of, self.pids()))

    @staticmethod
    def rss_of(pid: int) -> int:
        return _status(pid, "VmRSS")

    def peaks(self) -> dict[int, int]:
        """The most bytes that each living process was resident with so far."""
        return {pid: _status(pid, "VmHWM") for pid in self.pids()}

    def handles(self) -> dict[str, int]:
        """Open file handles, those of them that are anonymous shared memory, and the entries of /dev/shm."""
        targets = [target for pid in self.pids() for target in _targets(pid)]
        anonymous = sum(target.startswith("/memfd:") for target in targets)
        return {"handles": len(targets), "memfd": anonymous, "/dev/shm": len(os.listdir("/dev/shm"))}


def _text(pid: int, name: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    return ""  # it has ended


def _status(pid: int, field_name: str) -> int:
    lines = (line.split() for line in _text(pid, "status").splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == f"{field_name}:"), 0)


def _targets(pid: int) -> list[str]:
    found = []
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(link))
    return found


@contextmanager
def serving(repository: Path, settings: Mapping[str, Any]) -> Iterator[Server]:
    """A server of ours, ready, in a folder of its own. Settings that this version lacks are left out, said aloud."""
    known = {name: value for name, value in settings.items() if name in Settings.model_fields}
    if absent := sorted(set(settings) - set(known)):
        print(f"this version has no setting {', '.join(absent)}; left out")
    with TemporaryDirectory() as folder:
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in known.items()]
        Path(folder, "medrestore.toml").write_text("".join(lines), encoding="utf-8")
        server = Server(Path(folder), "--repository", str(repository))
        try:
            server.wait_ready(START_S)
            yield server
        finally:
            if server.process.poll() is None:
                server.stop(limit_s=60)


@dataclass
class Table:
    """What a benchmark found: rows of equal keys, lines below them, and for JSON alone every single value."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        names = list(self.rows[0])
        cells = [names, ["---"] * len(names), *([_shown(row[name]) for name in names] for row in self.rows)]
        return "\n".join([f"\n## {self.title}\n", *(f"| {' | '.join(row)} |" for row in cells), "", *self.notes])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else str(value)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with the smallest and the largest, as text."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def mib(size: int) -> int:
    return round(size / 2**20)


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


def kinds(replies: Iterable[Reply]) -> dict[str, int]:
    """How many replies of each status; "lost" and "refused" beside them."""
    return dict(sorted(Counter(reply.kind for reply in replies).items()))


def machine() -> dict[str, Any]:
    """CPU model, cores, load, versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    facts = {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    return {**facts, "python": platform.python_version(), **versions}


def noisy(rows: int, columns: int, dtype: str = "uint16", seed: int = 1) -> np.ndarray:
    """Stored values of smooth shapes with noise, over a quarter of the type's range."""
    top = np.iinfo(dtype).max
    waves = np.sin(np.linspace(0, 6, rows))[:, None] * np.cos(np.linspace(0, 5, columns))
    noise = np.random.default_rng(seed).normal(0, 0.01, (rows, columns))
    return (top * (0.25 + 0.1 * waves + noise)).clip(0, top).astype(dtype)


def picture(pixels: np.ndarray, format: str = "png") -> bytes:
    """The pixels as a file of one of the raster formats."""
    return npy(pixels) if format == "npy" else encode(decode(npy(pixels)), format)


def finish(tables: Iterable[Table], path: Path | None) -> None:
    """Prints the tables as they come, the machine below them; writes both as JSON where a path is given."""
    found = []
    for table in tables:
        found.append(vars(table))
        print(table, flush=True)
    facts = machine()
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    if path:
        text = json.dumps({"machine": facts, "tables": found}, indent=1, default=str)
        path.write_text(text + "\n", encoding="utf-8")


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every program."""
    parser.add_argument("--json", type=Path, help="write all figures here")
