"""A series of 2,000 slices through a real Orthanc: does memory stay, and is the model kept busy?

Starts an Orthanc and a server, uploads synthetic CT slices, has them restored, and reads the resident memory
of the server's own processes all the while. The pace is held against the bare model: the very graphs and
arrays of some slices in a loop of one process, with one thread as the server's worker has:

    MEDRESTORE_SHARED=path python -m tests.benchmarks.pacs --slices 2000 --side 256
    MEDRESTORE_SHARED=path python -m tests.benchmarks.pacs --slices 60 --side 512 --repository models/bundles \\
        --model denoise

Without `--repository` a light filter is served in place of a network: memory does not depend on the weights'
worth. `--growth` and `--share` have it fail where memory grows more (MiB) or the pace is less.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from models.bundle import find_bundle
from tests.benchmarks.bare import Bare
from tests.benchmarks.jobs import Memory, events
from tests.dicom_objects import dataset_of, file_of
from tests.e2e.server import Server
from tests.integration.client import npy
from tests.orthanc import TestOrthanc
from tests.tiny_bundle import seal, write_tiny

STUDY, SERIES = "1.2.826.99", "1.2.826.99.1"
SAMPLES = 8  # slices of the bare loop
MIB = 2**20


def pixels_of(index: int, side: int) -> np.ndarray[Any, Any]:
    """Smooth shapes and noise, HU."""
    x = np.linspace(0, 6 * np.pi, side)
    clean = 400 * np.sin(x + index / 50)[:, None] * np.cos(x)
    return (clean + np.random.default_rng(index).normal(0, 40, clean.shape)).astype(np.int16)


def slice_of(index: int, side: int) -> bytes:
    """A CT slice."""
    pixels = pixels_of(index, side)
    attributes = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "SOPInstanceUID": f"{SERIES}.{index + 1}"}
    rescale = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}
    return file_of(dataset_of(pixels, InstanceNumber=index + 1, **attributes, **rescale))


def configure(folder: Path, orthanc: TestOrthanc, model: str) -> None:
    state = orthanc.state
    (folder / "medrestore.toml").write_text(
        f'jobs = "jobs"\njob_free_bytes = 0\nthreads = 1\nfast_for_8_bit = false\ndenoise_model = "{model}"\n'
        f'[pacs.main]\nurl = "{state["dicomweb"]}"\nuser = "{state["user"]}"\npassword = "{state["password"]}"\n'
    )


def follow(server: Server, memory: Memory, slices: int) -> tuple[dict[str, Any], float]:
    """The last document of the job, and its seconds; prints a line at each tenth."""
    body = json.dumps({"study": STUDY, "series": SERIES, "operation": "denoise"}).encode()
    request = Request(f"{server.url}/pacs/jobs", body, {"Content-Type": "application/json"})
    start, rows = time.perf_counter(), 0
    with urlopen(request, timeout=60) as answer:
        id = json.loads(answer.read())["id"]
    print("\n| slices | resident MiB | seconds |\n| --- | --- | --- |")
    for job in events(f"{server.url}/pacs/jobs/{id}/events"):
        done = job["instances"]["total"] - job["instances"]["pending"]
        if job["instances"]["total"] and done >= slices * rows / 10 and rows <= 10:
            rows += 1
            print(f"| {done:5} | {memory.now() / MIB:8.1f} | {time.perf_counter() - start:7.1f} |", flush=True)
    return job, time.perf_counter() - start


def run(options: argparse.Namespace, folder: Path) -> None:
    """The whole demonstration in one folder."""
    repository = options.repository or folder / "bundles"
    if options.repository is None:
        write_tiny(folder / "bundles")
        seal(folder / "bundles" / "tiny" / "1", tiles=[(64, 64), (256, 256), (512, 512)])
    bundle = find_bundle(repository, options.model)
    bare = Bare(bundle, [npy(pixels_of(index, options.side)) for index in range(SAMPLES)])  # no codec in the loop
    costs = [bare.network().wall_s]
    orthanc = TestOrthanc(Path(os.environ["MEDRESTORE_SHARED"]), folder / "orthanc")
    server = None
    try:
        for index in range(options.slices):
            orthanc.upload([slice_of(index, options.side)])
        configure(folder, orthanc, options.model)
        server = Server(folder, "--repository", str(repository.absolute()))
        server.wait_ready()
        memory = Memory(server.process.pid)
        idle = memory.now()
        with urlopen(Request(f"{server.url}/denoise", slice_of(0, options.side)), timeout=600):
            warm = memory.now()
        print(f"{os.cpu_count()} CPUs; {options.slices} slices of {options.side} x {options.side}; {bundle.reference}")
        print(f"idle: {idle / MIB:.1f} MiB, after one image that somebody waited for {warm / MIB:.1f} MiB")
        job, seconds = follow(server, memory, options.slices)
        memory.stop()
        costs.append(bare.network().wall_s)
        assert job["state"] == "completed", job
        assert job["instances"]["verified"] == options.slices
        growth, cost = (memory.peak - idle) / MIB, sum(costs) / len(costs)
        share = options.slices / seconds * cost
        above = (memory.peak - warm) / MIB
        print(f"peak {memory.peak / MIB:.1f} MiB: {growth:.1f} above idle, {above:.1f} above what one image takes")
        print(f"{options.slices / seconds:.2f} slices/s; bare model {1 / cost:.2f} ({share:.2f} of it)")
        assert options.growth is None or growth <= options.growth
        assert options.share is None or share >= options.share
    finally:
        if server:
            server.stop(limit_s=60)
        orthanc.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and pace of one large series.")
    parser.add_argument("--slices", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repository", type=Path, help="bundles; left out, a light filter")
    parser.add_argument("--model", default="tiny", help="name or name@version")
    parser.add_argument("--growth", type=float, help="fail above this growth of memory, MiB")
    parser.add_argument("--share", type=float, help="fail below this share of the bare model's pace")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run(options, Path(name))


if __name__ == "__main__":
    main()
