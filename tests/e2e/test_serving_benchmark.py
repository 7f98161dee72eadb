"""The comparison with other servers works; what it measures is nobody's promise."""

import json
import os
import subprocess
import sys

from tests.e2e.server import ROOT


def test_both_servers_answer_every_image_and_every_figure_is_written(tmp_path) -> None:
    path = tmp_path / "figures.json"
    size = ["--models", "light", "--sizes", "mixed", "--rounds", "1", "--seconds", "0.1"]
    load = ["--callers", "2", "--half-load", "0.5", "--servers", "fastapi"]
    command = [sys.executable, "-m", "tests.benchmarks.serving", *size, *load, "--json", str(path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDRESTORE_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    throughput, latency = json.loads(path.read_text())["tables"]
    assert [row["server"] for row in throughput["rows"]] == ["medrestore", "fastapi"]
    assert all(set(one["answers"]) == {"200"} for one in throughput["values"].values())
    assert all(row["p99 ms"] >= row["p50 ms"] > 0 for row in latency["rows"])
