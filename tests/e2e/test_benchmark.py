"""`make bench` works; what it measures is nobody's promise."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx

from tests.benchmarks.speed import dncnn
from tests.e2e.server import ROOT


def test_yardstick_is_a_dncnn_of_17_layers_and_64_channels() -> None:
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(dncnn()).graph.initializer]
    assert [w.shape[:2] for w in weights] == [(64, 1), *[(64, 64)] * 15, (1, 64)]
    assert all(np.isfinite(w).all() for w in weights)


def test_benchmark_times_every_runtime(built_repository, tmp_path) -> None:
    script = str(ROOT / "tests" / "benchmarks" / "speed.py")
    options = ["--repository", str(built_repository), "--model", "tiny", "--side", "48", "--rounds", "1"]
    command = [sys.executable, script, *options, "--json", str(tmp_path / "seconds.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert {"tiny@1, onnx fp32", "tiny@1, openvino fp32", "tiny@1, torchscript fp32"} <= set(seconds)
    assert all(len(times) == 1 and times[0] > 0 for times in seconds.values())
    assert "DnCNN-17-64" in done.stdout
