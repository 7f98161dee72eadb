"""What an export says of its tiles, measured on the graphs that were written: seam, exactness, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.imaging.tiles import cut, merge, plan_tiles, whole_plan

if TYPE_CHECKING:
    from training.export import Graph

EXACT = 1e-6  # largest difference of tiled from whole that passes for rounding, unit scale
SIDE = 512  # of the image that memory is measured on
BYTES_STEP = 64  # memory is told in steps, so that equal graphs have equal manifests

Array = NDArray[np.float32]


def tiling_facts(
    graphs: list[Graph], folder: Path, *, multiple: int, halo: int, tiles: list[tuple[int, int]]
) -> dict[str, Any]:
    """The manifest's fields about tiles. Raises ValueError where a network claims exact tiling and has a seam."""
    restore = graphs[-1]
    exact = bool(getattr(restore.module, "predictor", restore.module).exact_tiling)
    tile = tiles[0]
    if exact:  # the smallest shows most; too small a one only ever holds frames whole
        tile = (max(tile[0], 2 * halo + multiple), max(tile[1], 2 * halo + multiple))
    seam = measure_seam(restore, folder / f"{restore.name}.onnx", tile, multiple, halo)
    if exact and not seam <= EXACT:
        raise ValueError(f"{restore.name}: tiles of {tile} are {seam:.2e} off the whole; nothing was written")
    memory = {graph.name: measure_memory(graph, folder / f"{graph.name}.onnx") for graph in graphs}
    return {
        "multiple": multiple,
        "halo": halo,
        "tiles": tiles,
        "exact_tiling": exact,
        "seam": seam,
        "bytes_per_pixel": memory,
    }


def measure_seam(graph: Graph, path: Path, tile: tuple[int, int], multiple: int, halo: int) -> float:
    """Largest difference of the exported graph's tiled answer from its answer to the whole."""
    from training.export import run_onnx

    rows, columns = tile[0] + 5 * multiple, tile[1] + 3 * multiple + 4
    example = graph.example(1, rows, columns, seed=3)
    plan = plan_tiles(rows, columns, [tile], multiple, halo)

    def restored(image: Array) -> Array:
        answer: Array = run_onnx(path, graph, example | {"image": image[None, None]})["restored"][0, 0]
        return answer

    image, whole = example["image"][0, 0], whole_plan(plan, multiple, halo)
    (expected,) = (restored(each) for each in cut(image, whole))
    scale = expected.shape[0] // whole.shape[0]
    tiled = merge([restored(each) for each in cut(image, plan)], plan, scale)
    return float(np.abs(tiled - merge([expected], whole, scale)).max())


def measure_memory(graph: Graph, path: Path) -> float:
    """Bytes that a run takes for each pixel of its input, by the peak of a process that does nothing else."""
    words = [sys.executable, "-m", "training.tiling", str(path), str(len(graph.parameters))]
    done = subprocess.run(words, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return float(-(-json.loads(done.stdout) // BYTES_STEP) * BYTES_STEP)


def main(path: str, parameters: str) -> None:
    """Prints the bytes per pixel of one run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {
        "image": np.zeros((1, 1, SIDE, SIDE), np.float32),
        "parameters": np.full((1, int(parameters)), 1e-3, np.float32),
        "strength": np.ones(1, np.float32),
    }
    before = peak_bytes()
    session.run(None, {each.name: given[each.name] for each in session.get_inputs()})
    print(json.dumps((peak_bytes() - before) / SIDE**2))


def peak_bytes() -> int:
    """Largest resident size so far (Linux); unlike `getrusage`, without that of the process that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
