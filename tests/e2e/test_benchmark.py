"""`make bench` works; what it measures is nobody's promise."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from app.backends.base import load
from tests.benchmarks.speed import gflop_of, write_dncnn
from tests.benchmarks.superresolve import write_bicubic
from tests.e2e.server import ROOT


def test_yardstick_is_a_dncnn_of_17_layers_and_64_channels(tmp_path) -> None:
    bundle = write_dncnn(tmp_path, 64)
    graph = onnx.load(bundle.graph("restore", "onnx")).graph
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    assert [w.shape[:2] for w in weights] == [(64, 1), *[(64, 64)] * 15, (1, 64)]
    assert all(np.isfinite(w).all() for w in weights)
    assert gflop_of(bundle, 256) == 2 * 9 * (64 + 15 * 64 * 64 + 64) * 256 * 256 / 1e9


def test_benchmark_times_every_runtime(built_repository, tmp_path) -> None:
    options = ["--repository", str(built_repository), "--model", "tiny", "--side", "64", "--rounds", "1"]
    command = [sys.executable, "-m", "tests.benchmarks.speed", *options, "--json", str(tmp_path / "seconds.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    for what in ("network", "pipeline"):
        assert {f"tiny@1, {name} fp32, {what}" for name in ("onnx", "openvino", "torchscript")} <= set(seconds)
    assert all(len(times) == 1 and times[0] > 0 for times in seconds.values())
    assert "DnCNN-17-64" in done.stdout


def test_super_resolution_is_timed_beside_interpolation_and_weighed_through_a_server(
    built_repository, tmp_path
) -> None:
    options = [
        "--repository",
        str(built_repository),
        "--model",
        "tiny",
        "--scales",
        "2",
        "--side",
        "64",
        "--rounds",
        "1",
    ]
    command = [sys.executable, "-m", "tests.benchmarks.superresolve", *options, "--memory", "128"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDRESTORE_")}
    command += ["--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    speed, memory = json.loads((tmp_path / "figures.json").read_text())["tables"]
    ways = {(row["how"], row["what"]) for row in speed["rows"]}
    for name in ("bicubic, onnx", "tiny-x2@1, onnx fp32", "tiny-x2@1, openvino fp32"):
        assert {(name, "service code"), (name, "bare")} <= ways
    assert ("bicubic, Pillow", "bare") in ways
    assert all(len(times) == 1 and times[0] > 0 for times in speed["values"].values())
    assert [(row["model"], row["answer"]) for row in memory["rows"]] == [("tiny-x2", "200"), ("bicubic-x2", "200")]


@pytest.mark.parametrize("scale", [2, 4])
def test_the_yardstick_is_bicubic_interpolation_aligned_by_pixel_area(scale, tmp_path) -> None:
    bundle = write_bicubic(tmp_path, scale, 64)
    plane = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    answer = load("onnx", bundle, "cpu", "fp32", 1).run("restore", {"image": plane[None, None]})["restored"][0, 0]
    expected = Image.fromarray(plane).resize((30 * scale, 20 * scale), Image.Resampling.BICUBIC)
    inner = slice(3 * scale, -3 * scale)  # they differ in what lies beyond the edge
    np.testing.assert_allclose(answer[inner, inner], np.asarray(expected)[inner, inner], atol=1e-5)
