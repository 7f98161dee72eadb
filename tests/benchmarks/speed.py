"""Speed and fidelity of every backend and precision, beside a plain DnCNN in the same run.

    python -m tests.benchmarks.speed [--model denoise] [--repository FOLDER] [--side 512] [--rounds 5]
                                     [--threads 1] [--json FILE]

For each way of running it: milliseconds per slice of the network alone and of everything between the decoded and the
restored image, and the arithmetic that the network gets done. DnCNN (Zhang et al. 2017: 17 layers of 3 x 3, 64
channels; batch normalisation folded) has random weights, which change its speed in nothing, and runs through the same
backends. All take turns in every round, so that what else the machine does falls on each alike; the median counts.
Times are CPU seconds, which other work disturbs least, and with one thread are the quiet machine's wall time.

Then what a reduced precision costs: PSNR lost against exact mode through the whole pipeline, on packaged images with
noise at several levels (or made smaller), and the largest change of a stored 16-bit value.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from app.backends.base import MODULES, Backend, load, plugin, self_test
from app.errors import BackendUnavailable
from app.options import Options
from app.pipeline import EXACT, FAST, restore
from app.runner import LocalRunner
from app.settings import SHIPPED_BUNDLES
from app.tuning.fidelity import loss, packaged, scaled
from app.tuning.sweep import Load, inputs_for
from models.bundle import Bundle, find_bundle
from models.imaging.image import Image, ValueMap
from tests.benchmarks.flop import count_flop
from tests.tiny_bundle import Graph, write_bundle

DNCNN = "DnCNN-17-64"
COUNTED_SIDE = 64  # operations are counted on a small image and grow with its area


@dataclass
class Contestant:
    """One thing that is timed."""

    name: str
    what: str  # "network" or "pipeline"
    run: Callable[[], object]
    gflop: float | None = None
    seconds: list[float] = field(default_factory=list)


def write_dncnn(root: Path, side: int, layers: int = 17, channels: int = 64) -> Bundle:
    """A plain DnCNN as a bundle: image (B, 1, H, W) to image."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    widths = [1, *[channels] * (layers - 1), 1]
    nodes, weights, value = [], [], "image"
    for index, (given, made) in enumerate(pairwise(widths)):
        kernel = rng.normal(0, np.sqrt(2 / (9 * given)), (made, given, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel{index}"))
        nodes.append(helper.make_node("Conv", [value, f"kernel{index}"], [f"conv{index}"], pads=[1, 1, 1, 1]))
        value = f"conv{index}"
        if index < layers - 1:
            nodes.append(helper.make_node("Relu", [value], [f"relu{index}"]))
            value = f"relu{index}"
    nodes.append(helper.make_node("Sub", ["image", value], ["restored"]))
    shape = ["B", 1, "H", "W"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "restored")]
    graph = helper.make_graph(nodes, "dncnn", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    blank = np.zeros((1, 1, 16, 16), np.float32)
    # Declared as x2, since a denoiser's bundle would need an estimator; no pipeline runs it.
    write_bundle(root, "dncnn", {"restore": Graph(model, {"image": blank}, [blank])}, scale=2, tiles=[(side, side)])
    return find_bundle(root, "dncnn")


def slice_of(side: int) -> Image:
    """A float image of smooth shapes with noise, on the unit scale."""
    x = np.linspace(0, 6 * np.pi, side)
    plane = 0.5 + 0.2 * np.sin(x)[:, None] * np.cos(x) + np.random.default_rng(1).normal(0, 0.1, (side, side))
    pixels = plane.astype(np.float32)[None, :, :, None]
    return Image(pixels, ValueMap(1.0, 0.0, unit="float value"), "npy", -3.4e38, 3.4e38)


def through_pipeline(image: Image, bundle: Bundle, backend: Backend) -> None:
    """One image through the product's own pipeline, in this process."""
    asyncio.run(restore(image, bundle, Options(), LocalRunner(backend)))


def backends(bundle: Bundle, threads: int) -> Iterator[Backend]:
    """Every runtime and precision that is to be had."""
    for name, precision in product(MODULES, bundle.manifest.precisions):
        try:
            backend = load(name, bundle, "cpu", precision, threads)
            self_test(backend, bundle)
        except BackendUnavailable as reason:
            print(f"left out: {name} {precision}: {reason}", file=sys.stderr)
        else:
            yield backend


def gflop_of(bundle: Bundle, side: int) -> float:
    """Operations of one run on `side` x `side`, in 1e9."""
    inputs = inputs_for(bundle, Load((COUNTED_SIDE, COUNTED_SIDE), 1))
    return count_flop(bundle.graph("restore", "onnx"), inputs) * (side / COUNTED_SIDE) ** 2 / 1e9


def contestants(bundle: Bundle, loaded: list[Backend], dncnn: Bundle, side: int, threads: int) -> list[Contestant]:
    """All that take turns, each of them run once already."""
    plane, work = slice_of(side), Load((side, side), 1)
    found = []
    for name, runtimes, owner in ((DNCNN, list(plain(dncnn, threads)), dncnn), (bundle.reference, loaded, bundle)):
        inputs, gflop = inputs_for(owner, work), gflop_of(owner, side)
        for backend in runtimes:
            label = f"{name}, {backend.name} {backend.precision}"
            found.append(Contestant(label, "network", partial(backend.run, "restore", inputs), gflop))
            if owner is bundle:
                found.append(Contestant(label, "pipeline", partial(through_pipeline, plane, bundle, backend)))
    for contestant in found:
        contestant.run()
    return found


def plain(dncnn: Bundle, threads: int) -> Iterator[Backend]:
    """The runtimes of DnCNN: its random weights have no golden answer to be tested against."""
    for name, precision in (("openvino", FAST), ("openvino", EXACT), ("onnx", EXACT)):
        try:
            yield load(name, dncnn, "cpu", precision, threads)
        except BackendUnavailable as reason:
            print(f"left out: {DNCNN}, {name} {precision}: {reason}", file=sys.stderr)


def measure(found: list[Contestant], rounds: int) -> None:
    """CPU seconds of every contestant; they take turns."""
    for _ in range(rounds):
        for contestant in found:
            start = time.process_time()
            contestant.run()
            contestant.seconds.append(time.process_time() - start)


def speed_table(found: list[Contestant], side: int) -> str:
    """A Markdown table: medians, spread, arithmetic per second, and both beside the first network."""
    first = found[0]
    assert first.gflop
    rate = first.gflop / statistics.median(first.seconds)
    lines = [
        f"| {side} x {side} | what | ms | spread | GFLOP | GFLOP/s | per FLOP, beside {first.name} | in time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for c in found:
        median = statistics.median(c.seconds)
        spread = f"{1000 * min(c.seconds):.0f} to {1000 * max(c.seconds):.0f}"
        work = f"{c.gflop:.1f} | {c.gflop / median:.0f} | {c.gflop / median / rate:.2f}" if c.gflop else " | | "
        times = statistics.median(first.seconds) / median
        lines.append(f"| {c.name} | {c.what} | {1000 * median:.0f} | {spread} | {work} | {times:.2f} |")
    return "\n".join(lines)


def loss_table(bundle: Bundle, loaded: list[Backend]) -> str:
    """A Markdown table: what each reduced precision costs against the first exact runtime."""
    planes = [*packaged(), *photographs()]
    lines = [
        f"| {bundle.reference} | PSNR lost, dB | worst image | largest change of 16 bits | RMS | images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    exact = next(backend for backend in loaded if backend.precision == EXACT)
    for backend in loaded:
        if backend.precision == FAST:
            found = loss(bundle, exact, backend, planes)
            figures = f"{found.mean_db:.5f} | {found.worst_db:.5f} | {found.largest} | {found.typical:.2f}"
            lines.append(f"| {backend.name} {backend.precision} | {figures} | {found.images} |")
    return "\n".join(lines)


def photographs(side: int = 256) -> list[np.ndarray]:
    """Middle parts of images that scikit-image carries, on the unit scale."""
    from skimage import data

    planes = [data.camera(), data.brick(), data.moon()]
    corners = [((plane.shape[0] - side) // 2, (plane.shape[1] - side) // 2) for plane in planes]
    return [scaled(p[r : r + side, c : c + side].astype(float)) for p, (r, c) in zip(planes, corners, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and fidelity of every backend and precision, beside DnCNN.")
    parser.add_argument("--model", default="denoise", help="name or name@version")
    parser.add_argument("--repository", type=Path, default=SHIPPED_BUNDLES)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all seconds here")
    options = parser.parse_args()
    plugin("onnx")  # first, because it switches the telemetry of onnxruntime off
    bundle = find_bundle(options.repository, options.model)
    loaded = list(backends(bundle, options.threads))
    with TemporaryDirectory() as folder:
        dncnn = write_dncnn(Path(folder), options.side)
        found = contestants(bundle, loaded, dncnn, options.side, options.threads)
    measure(found, options.rounds)
    load_now = os.getloadavg()[0]
    print(f"{os.cpu_count()} CPUs, load {load_now:.1f}, {options.threads} thread, CPU time, {options.rounds} rounds\n")
    print(speed_table(found, options.side), flush=True)
    print(f"\n{loss_table(bundle, loaded)}")
    if options.json:
        seconds = {f"{c.name}, {c.what}": c.seconds for c in found}
        options.json.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
