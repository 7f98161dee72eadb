"""What super-resolution costs on the CPU, beside bicubic interpolation of the same image by the same code.

    python -m tests.benchmarks.superresolve [--repository FOLDER] [--model superresolve] [--side 512] [--rounds 3]
                                            [--threads 1] [--memory 2048] [--scales 2 4] [--json FILE]

For each runtime and precision: seconds of one image for the network alone and for everything between the decoded and
the enlarged image (tiles, rounding, the consistency guard). Network-free, there are three: a bundle whose graph is one
cubic interpolation, through that same code; the graph alone; and Pillow's `resize`. All take turns in every round; the
median counts. Times are CPU seconds, as in `tests.benchmarks.speed`.

Then the memory of one large image at x2 through a server, above what it holds at rest: model and interpolation alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image as Picture

from app.backends.base import Backend, load, plugin
from app.pipeline import EXACT
from app.settings import SHIPPED_BUNDLES
from app.tuning.sweep import Load, inputs_for
from models.bundle import Bundle, find_bundle
from models.imaging.image import Image
from tests.benchmarks.client import Request
from tests.benchmarks.fault_image import alone
from tests.benchmarks.harness import Table, add_common, finish, mib, noisy, picture
from tests.benchmarks.speed import Contestant, backends, gflop_of, measure, slice_of, through_pipeline
from tests.tiny_bundle import IMAGE, Graph, onnx_model, write_bundle

PIPELINE, BARE = "service code", "bare"


def write_bicubic(root: Path, scale: int, side: int) -> Bundle:
    """Cubic interpolation (a = -0.5, aligned by pixel area) as a bundle `bicubic-x{scale}`, one tile for it all."""
    from onnx.helper import make_node

    options = {"mode": "cubic", "cubic_coeff_a": -0.5, "coordinate_transformation_mode": "half_pixel"}
    node = make_node("Resize", ["image", "", "scales"], ["restored"], **options)
    shapes = {"restored": ["B", 1, f"{scale}*H", f"{scale}*W"]}
    model = onnx_model([node], {"scales": np.array([1, 1, scale, scale], np.float32)}, IMAGE, shapes)
    blank = np.zeros((1, 1, 16, 16), np.float32)
    graph = Graph(model, {"image": blank}, [np.zeros((1, 1, 16 * scale, 16 * scale), np.float32)])
    promises: dict[str, Any] = {"tiles": [(64, 64), (256, 256), (side, side)], "precisions": [EXACT]}
    write_bundle(root, f"bicubic-x{scale}", {"restore": graph}, scale, **promises)
    return find_bundle(root, f"bicubic-x{scale}")


def by_pillow(image: Image, scale: int) -> Callable[[], object]:
    """Pillow's own interpolation of one plane of floats."""
    plane = Picture.fromarray(image.pixels[0, :, :, 0])
    rows, columns = image.pixels.shape[1:3]
    return partial(plane.resize, (columns * scale, rows * scale), Picture.Resampling.BICUBIC)


def contestants(bundle: Bundle, bicubic: Bundle, image: Image, threads: int) -> Iterator[Contestant]:
    """All that take turns: first those without a network."""
    side, scale = image.pixels.shape[1], bundle.manifest.scale
    work = Load((side, side), 1)

    def pair(name: str, owner: Bundle, backend: Backend, gflop: float | None) -> Iterator[Contestant]:
        inputs = inputs_for(owner, work)
        yield Contestant(name, PIPELINE, partial(through_pipeline, image, owner, backend), gflop)
        yield Contestant(name, BARE, partial(backend.run, "restore", inputs), gflop)

    yield from pair("bicubic, onnx", bicubic, load("onnx", bicubic, "cpu", EXACT, threads), None)
    yield Contestant("bicubic, Pillow", BARE, by_pillow(image, scale))
    gflop = gflop_of(bundle, side)
    for backend in backends(bundle, threads):
        yield from pair(f"{bundle.reference}, {backend.name} {backend.precision}", bundle, backend, gflop)


def speed(bundle: Bundle, bicubic: Bundle, side: int, rounds: int, threads: int) -> Table:
    """Seconds of one image by every way to enlarge it."""
    found = list(contestants(bundle, bicubic, slice_of(side), threads))
    for contestant in found:
        contestant.run()
    measure(found, rounds)
    medians = {(c.name, c.what): statistics.median(c.seconds) for c in found}
    rows = []
    for c in found:
        median = medians[c.name, c.what]
        row = {"how": c.name, "what": c.what, "seconds": f"{median:.3f}"}
        row |= {"spread": f"{min(c.seconds):.3f} to {max(c.seconds):.3f}"}
        row |= {"times bicubic, same code": f"{median / medians['bicubic, onnx', PIPELINE]:.1f}"}
        row |= {"times bicubic, Pillow": f"{median / medians['bicubic, Pillow', BARE]:.0f}"}
        rows.append(row | {"GFLOP/s": f"{c.gflop / median:.0f}" if c.gflop else ""})
    title = f"{bundle.reference}: {side} x {side} at x{bundle.manifest.scale}, CPU seconds, {threads} thread"
    values = {f"{c.name}, {c.what}": c.seconds for c in found}
    return Table(title, rows, [f"{rounds} rounds; load {os.getloadavg()[0]:.1f}."], values)


def memory(side: int, repository: Path, model: str, bicubic: Bundle) -> Table:
    """The memory that a large 16-bit image takes at x2, with the model and with interpolation."""
    data, rows = picture(noisy(side, side)), []
    settings = {"fast_for_8_bit": False, "threads": 1}
    for name, folder in ((model, repository), (bicubic.manifest.name, bicubic.folder.parent.parent)):
        told = alone(Request(f"/superresolve?scale=2&model={name}", data), settings, folder)
        above = told["sum of peaks MiB"] - told["RSS MiB at rest"]
        rows.append({"model": name, "image": f"{side} x {side} x 16 bit, PNG", **told, "above rest MiB": above})
    frame = 4 * side * side
    notes = [
        f"The answer itself has {mib(2 * frame)} MiB, as floats {mib(4 * frame)} MiB.",
        "Peaks are VmHWM of each process; their sum is more than was ever resident at one time, if anything.",
    ]
    return Table("Memory of one large image at x2 through the service", rows, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=SHIPPED_BUNDLES)
    parser.add_argument("--model", default="superresolve", help="what stands before -x2 and -x4 in the models' names")
    parser.add_argument("--scales", type=int, nargs="*", choices=(2, 4), default=[2, 4])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, default=2048, help="side of the large image; 0 leaves it out")
    add_common(parser)
    options = parser.parse_args()
    plugin("onnx")  # first, because it switches the telemetry of onnxruntime off
    with TemporaryDirectory() as folder:
        finish(_tables(options, Path(folder)), options.json)


def _tables(options: argparse.Namespace, folder: Path) -> Iterator[Table]:
    for scale in options.scales:
        bundle = find_bundle(options.repository, f"{options.model}-x{scale}")
        bicubic = write_bicubic(folder / "bicubic", scale, options.side)
        yield speed(bundle, bicubic, options.side, options.rounds, options.threads)
    if options.memory:
        bicubic = write_bicubic(folder / "alone", 2, 512)
        yield memory(options.memory, options.repository, f"{options.model}-x2", bicubic)


if __name__ == "__main__":
    main()
