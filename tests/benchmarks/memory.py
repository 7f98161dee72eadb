"""Peak resident memory of a service on large images: `python tests/benchmarks/memory.py`.

Starts `medrestore serve` anew for every case, sends one image, and reads the peaks of the service's process
and of its workers (VmHWM; their sum counts shared libraries more than once, and assumes that all peak at once).
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.dicom_objects import dataset_of, file_of
from tests.e2e.server import Server, children

GIB = 1024**3
CASES = {  # name -> route, format, padded, and the share of the side that is sent
    "denoise png": ("/denoise", "png", False, 1.0),
    "denoise dicom": ("/denoise", "dicom", False, 1.0),
    "denoise dicom, a fifth padding": ("/denoise", "dicom", True, 1.0),
    "x2 png": ("/superresolve?scale=2", "png", False, 1.0),
    "x4 png of half the side": ("/superresolve?scale=4", "png", False, 0.5),
}


def radiograph(side: int) -> NDArray[np.uint16]:
    """A smooth picture with noise, 16 bits of it used."""
    grid = np.arange(side, dtype=np.float32) / side
    smooth = 0.45 + 0.3 * np.outer(np.sin(7 * grid), np.cos(11 * grid))
    noise = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    return ((smooth + 0.01 * noise).clip(0, 1) * 65535).astype(np.uint16)


def encoded(format: str, padded: bool, side: int) -> bytes:
    """The radiograph as a file."""
    pixels = radiograph(side)
    if format == "dicom":
        facts = {}
        if padded:
            pixels[:, : side // 5] = 0
            facts["PixelPaddingValue"] = 0
        return file_of(dataset_of(pixels, **facts))
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def peak_bytes(pid: int) -> int:
    """Largest resident size that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(found[1]) * 1024 if (found := re.search(r"VmHWM:\s+(\d+)", status)) else 0


def measure(route: str, data: bytes, folder: Path) -> tuple[int, int, float]:
    """Peak bytes of the service and of its workers in sum, and the seconds of the request."""
    settings = folder / "medrestore.toml"
    settings.write_text("timeout_s = 3600\n", encoding="utf-8")  # a busy machine is no matter here
    server = Server(folder)
    try:
        server.wait_ready()
        start = time.perf_counter()
        with urlopen(Request(server.url + route, data, method="POST"), timeout=3600) as answer:
            answer.read()
        seconds = time.perf_counter() - start
        return peak_bytes(server.process.pid), sum(map(peak_bytes, children(server.process.pid))), seconds
    finally:
        server.close()


def main() -> int:
    """Prints the table; exit status 1 where a case is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--limit", type=float, default=2.0, help="GiB")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    print(f"16 bit, {options.side} x {options.side}\n\n| case | service MiB | workers MiB | sum MiB | s |")
    print("| --- | --- | --- | --- | --- |")
    worst = 0
    for name, (route, format, padded, share) in CASES.items():
        if options.only in name:
            data = encoded(format, padded, int(options.side * share))
            with tempfile.TemporaryDirectory() as folder:
                service, workers, seconds = measure(route, data, Path(folder))
            sizes = " | ".join(f"{size / 2**20:.0f}" for size in (service, workers, service + workers))
            print(f"| {name} | {sizes} | {seconds:.1f} |", flush=True)
            worst = max(worst, service + workers)
    return int(worst > options.limit * GIB)


if __name__ == "__main__":
    sys.exit(main())
