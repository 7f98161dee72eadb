"""Seconds to denoise one 512 x 512 slice, for each backend and precision, beside a plain DnCNN.

    python tests/benchmarks/speed.py [--model denoise] [--repository FOLDER] [--side 512] [--rounds 7] [--json FILE]

What is timed for our model is everything between the decoded and the restored image: noise estimate, tiles, network,
noise estimate of the result. DnCNN (Zhang et al. 2017: 17 layers of 3 x 3, 64 channels; batch normalisation folded)
is timed alone, in onnxruntime fp32, with random weights, which change its speed in nothing. All take turns in
every round, so that what else the machine does falls on each alike; the median counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from app.backends.base import MODULES, Backend, load, plugin, self_test
from app.errors import BackendUnavailable
from app.pipeline import Options, restore
from app.runner import LocalRunner
from app.settings import SHIPPED_BUNDLES
from models.bundle import Bundle, find_bundle
from models.imaging.image import Image, ValueMap

DNCNN = "DnCNN-17-64, onnx fp32"


def dncnn(layers: int = 17, channels: int = 64) -> bytes:
    """The ONNX file of a plain DnCNN: image (1, 1, H, W) to image."""
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
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, "H", "W"]) for name in ("image", "restored")]
    graph = helper.make_graph(nodes, "dncnn", ends[:1], ends[1:], weights)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def slice_of(side: int) -> Image:
    """A float image of smooth shapes with noise, on the unit scale."""
    x = np.linspace(0, 6 * np.pi, side)
    plane = 0.5 + 0.2 * np.sin(x)[:, None] * np.cos(x) + np.random.default_rng(1).normal(0, 0.1, (side, side))
    pixels = plane.astype(np.float32)[None, :, :, None]
    return Image(pixels, ValueMap(1.0, 0.0, unit="float value"), "npy", -3.4e38, 3.4e38)


def denoise(image: Image, bundle: Bundle, backend: Backend) -> None:
    """One image through the product's own pipeline, in this process."""
    asyncio.run(restore(image, bundle, Options(), LocalRunner(backend)))


def contestants(bundle: Bundle, image: Image) -> dict[str, Callable[[], object]]:
    """Name -> what is timed, each of them run once already."""
    plugin("onnx")  # first, because it switches the telemetry of onnxruntime off
    import onnxruntime

    session = onnxruntime.InferenceSession(dncnn(), providers=["CPUExecutionProvider"])
    plane = np.ascontiguousarray(np.moveaxis(image.pixels, -1, 1))
    runs: dict[str, Callable[[], object]] = {DNCNN: partial(session.run, None, {"image": plane})}
    for name in MODULES:
        for precision in bundle.manifest.precisions:
            try:
                backend = load(name, bundle, "cpu", precision)
            except BackendUnavailable as reason:
                print(f"left out: {name} {precision}: {reason}", file=sys.stderr)
                continue
            self_test(backend, bundle)
            runs[f"{bundle.reference}, {name} {precision}"] = partial(denoise, image, bundle, backend)
    for run in runs.values():
        run()
    return runs


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, by name; the contestants take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]], side: int) -> str:
    """A Markdown table: median, extremes, ratio to DnCNN."""
    reference = statistics.median(seconds[DNCNN])
    lines = [f"| {side} x {side} | median s | fastest | slowest | share of DnCNN |", "| --- | --- | --- | --- | --- |"]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(f"| {name} | {median:.3f} | {min(times):.3f} | {max(times):.3f} | 1/{reference / median:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per slice, for each backend and precision, beside DnCNN.")
    parser.add_argument("--model", default="denoise", help="name or name@version of a denoiser")
    parser.add_argument("--repository", type=Path, default=SHIPPED_BUNDLES)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all seconds here")
    options = parser.parse_args()
    bundle = find_bundle(options.repository, options.model)
    seconds = measure(contestants(bundle, slice_of(options.side)), options.rounds)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end, {options.rounds} rounds\n")
    print(report(seconds, options.side))
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
