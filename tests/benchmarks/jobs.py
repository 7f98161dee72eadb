"""One job of hundreds of frames: is memory flat, is progress told, is the result right?

Starts a server, sends it a synthetic enhanced MR object, follows the events of the job, and reads the
resident memory of the server and its workers as it goes:

    python -m tests.benchmarks.jobs --frames 500 --side 512 --repository path/to/bundles --model denoise

Without `--repository` a light filter is served in place of a network, so that it ends in minutes:
memory does not depend on the weights' worth. Prints a table and fails where the result is not valid.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from pydicom import dcmread, dcmwrite

from tests.dicom_objects import enhanced
from tests.e2e.server import Server, children
from tests.tiny_bundle import seal, write_tiny

CONFIGURATION = """jobs = "jobs"
job_free_bytes = 0
fast_for_8_bit = false
"""


class Memory:
    """Resident bytes of a process and its descendants, sampled all the time; the peak is kept."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def now(self) -> int:
        """Proportional set size where the system tells it: pages that processes share count once."""
        return sum(_resident(pid) for pid in {self.pid, *children(self.pid)})

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, self.now())


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has ended
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def write_object(path: Path, frames: int, side: int) -> int:
    """A 16-bit enhanced MR object of smooth shapes and noise; gives its size in bytes."""
    dataset = enhanced(frames, (2.0,) * frames)
    x = np.linspace(0, 6 * np.pi, side)
    clean = 1500 + 700 * np.sin(x)[:, None] * np.cos(x)
    rng = np.random.default_rng(1)
    pixels = np.empty((frames, side, side), np.uint16)
    for frame in pixels:
        frame[:] = np.clip(clean + rng.normal(0, 60, clean.shape), 0, 4095)
    dataset.Rows = dataset.Columns = side
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    dcmwrite(path, _with_meta(dataset), implicit_vr=False, little_endian=True, enforce_file_format=True)
    return path.stat().st_size


def _with_meta(dataset: Any) -> Any:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def events(url: str) -> Iterator[dict[str, Any]]:
    """The documents of a stream of server-sent events."""
    with urlopen(url, timeout=600) as stream:
        for line in io.TextIOWrapper(stream):
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def follow(server: Server, path: str, memory: Memory) -> list[tuple[int, int, float]]:
    """(frames done, resident bytes, seconds) at each tenth of the job, which must end well."""
    rows: list[tuple[int, int, float]] = []
    told, start = 0, time.perf_counter()
    for job in events(f"{server.url}{path}/events"):
        told += 1
        tenth = job["frames"] * len(rows) / 10
        if job["frames_done"] >= tenth and len(rows) <= 10:
            rows.append((job["frames_done"], memory.now(), time.perf_counter() - start))
            print(f"| {rows[-1][0]:5} | {rows[-1][1] / 2**20:8.1f} | {rows[-1][2]:7.1f} |", flush=True)
    assert job["state"] == "done", job
    print(f"\n{told} events; {job['facts']['model']} by {job['facts']['backend']} {job['facts']['precision']}")
    return rows


def check(server: Server, path: str, source: Path, folder: Path) -> None:
    """The result is a valid object of as many frames, less noisy than the source."""
    result = folder / "result.dcm"
    with urlopen(f"{server.url}{path}/result", timeout=600) as answer, result.open("wb") as file:
        while block := answer.read(2**20):
            file.write(block)
    before, after = dcmread(source), dcmread(result)
    assert (after.NumberOfFrames, after.Rows) == (before.NumberOfFrames, before.Rows)
    assert len(after.PerFrameFunctionalGroupsSequence) == before.NumberOfFrames
    a, b = before.pixel_array, after.pixel_array
    rough = [float(np.mean([np.abs(np.diff(f.astype(float))).mean() for f in frames])) for frames in (a, b)]
    assert rough[1] < rough[0], rough
    print(f"result: {result.stat().st_size / 2**20:.0f} MiB, step between pixels {rough[0]:.1f} -> {rough[1]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and progress of one large job.")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repository", type=Path, help="bundles; left out, a light filter")
    parser.add_argument("--model", help="name or name@version; left out, the default")
    parser.add_argument("--growth", type=float, help="fail above this growth of memory from 10 %% to 100 %%, percent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(options, folder)


def run(options: argparse.Namespace, folder: Path) -> None:
    """The whole demonstration in one folder."""
    if options.repository is None:
        write_tiny(folder / "bundles")
        seal(folder / "bundles" / "tiny" / "1", tiles=[(64, 64), (256, 256), (512, 512)])
    (folder / "medrestore.toml").write_text(CONFIGURATION)
    size = write_object(folder / "in.dcm", options.frames, options.side)
    print(f"{os.cpu_count()} CPUs; {options.frames} frames of {options.side} x {options.side}, {size / 2**20:.0f} MiB")
    server = Server(folder, "--repository", str(options.repository or folder / "bundles"))
    try:
        server.wait_ready()
        memory = Memory(server.process.pid)
        print(f"resident before: {memory.now() / 2**20:.1f} MiB")
        print("\n| frames | resident MiB | seconds |\n| --- | --- | --- |")
        model = f"&model={options.model}" if options.model else ""
        with (folder / "in.dcm").open("rb") as body:
            request = Request(f"{server.url}/jobs?task=denoise{model}", body, {"Content-Length": str(size)})
            with urlopen(request, timeout=600) as answer:
                path = answer.headers["Location"]
        rows = follow(server, path, memory)
        memory.stop()
        early, late = rows[1][1], rows[-1][1]
        growth = 100 * (late / early - 1)
        print(f"resident at 10 % {early / 2**20:.1f} MiB, at 100 % {late / 2**20:.1f} MiB ({growth:+.1f} %)")
        print(f"peak {memory.peak / 2**20:.1f} MiB")
        check(server, path, folder / "in.dcm", folder)
        assert options.growth is None or growth < options.growth
    finally:
        server.stop(limit_s=60)


if __name__ == "__main__":
    main()
