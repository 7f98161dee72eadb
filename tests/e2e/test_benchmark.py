"""`make bench` works; what it measures is nobody's promise."""

import json
import subprocess
import sys

import numpy as np
import onnx

from tests.benchmarks.speed import gflop_of, write_dncnn
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
