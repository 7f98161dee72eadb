"""Fixtures for all tests: a small repository of real bundles, and the shared data folder."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from models.bundle import GOLDEN, FileEntry, Manifest, sha256_of, write_manifest

WINDOW = 5  # side of the box that local means are taken over
LAPLACIAN = [[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]  # Immerkær 1996, eq. 3


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data that MEDRESTORE_SHARED names; skips the test where it is unset."""
    folder = os.environ.get("MEDRESTORE_SHARED")
    if not folder:
        pytest.skip("set MEDRESTORE_SHARED to the folder of shared data to run this test")
    return Path(folder)


@pytest.fixture(scope="session")
def built_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once: `tiny/1`, a Wiener filter (denoise), and `tiny-x2/1`, bilinear (superresolve).

    Read only: tests that change bundles take `repository`.
    """
    root = tmp_path_factory.mktemp("bundles")
    x = np.random.default_rng(7).uniform(0.0, 1.0, (1, 1, 24, 32)).astype(np.float32)
    restore = {
        "image": x,
        "parameters": np.array([[0.01, 0.002, 0.001]], np.float32),
        "strength": np.ones(1, np.float32),
    }
    _write(
        root, "tiny", "denoise", 1, {"estimate": (_estimate_onnx(), {"image": x}), "restore": (_wiener_onnx(), restore)}
    )
    _write(root, "tiny-x2", "superresolve", 2, {"restore": (_bilinear_onnx(), {"image": x})})
    return root


@pytest.fixture()
def repository(built_repository: Path, tmp_path: Path) -> Path:
    """A copy of `built_repository` that the test may spoil."""
    return Path(shutil.copytree(built_repository, tmp_path / "repository"))


def _write(root: Path, name: str, task: str, scale: int, graphs: dict) -> None:
    """Writes one bundle: both formats, golden answers by PyTorch, manifest."""
    import onnx

    folder = root / name / "1"
    folder.mkdir(parents=True)
    golden, listed = {}, {}
    for graph, (model, inputs) in graphs.items():
        files = {"onnx": f"{graph}.onnx", "torchscript": f"{graph}.ts"}
        onnx.save(model, folder / files["onnx"])
        outputs = _trace(name, graph, inputs, folder / files["torchscript"])
        names = [output.name for output in model.graph.output]
        golden |= {f"{graph}.in.{key}": value for key, value in inputs.items()}
        golden |= {f"{graph}.out.{key}": value for key, value in zip(names, outputs, strict=True)}
        listed[graph] = files
    np.savez(folder / GOLDEN, **golden)
    entries = {path.name: FileEntry(sha256_of(path), path.stat().st_size) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        name=name,
        version="1",
        task=task,
        scale=scale,
        network="test",
        summary="a fixture of the tests",
        licence="Apache-2.0",
        graphs=listed,
        files=entries,
        tiles=[(16, 16), (32, 32), (64, 64)],
        multiple=8,
        halo=8,
        parameters=["variance_slope", "variance_offset", "variance_floor"] if task == "denoise" else [],
        precisions=["fp32", "bf16"],
        trained_sigma=(0.0, 0.2) if task == "denoise" else (0.0, 0.0),
    )
    write_manifest(folder, manifest)


def _trace(name: str, graph: str, inputs: dict, path: Path) -> list[np.ndarray]:
    """The same graph in PyTorch: written as TorchScript, and what it answers."""
    import torch
    from torch.nn import functional

    def local_mean(x):
        kernel = torch.full((1, 1, WINDOW, WINDOW), 1 / WINDOW**2)
        return functional.conv2d(functional.pad(x, [WINDOW // 2] * 4, "replicate"), kernel)

    class Estimate(torch.nn.Module):
        def forward(self, image):
            kernel = torch.tensor(LAPLACIAN)[None, None]
            edges = functional.conv2d(functional.pad(image, [1] * 4, "replicate"), kernel)
            sigma = edges.abs().mean((1, 2, 3)) * (math.sqrt(math.pi / 2) / 6)
            variance = (sigma * sigma)[:, None]
            return torch.cat([variance * 0, variance, variance * 0], 1)

    class Wiener(torch.nn.Module):
        def forward(self, image, parameters, strength):
            slope, offset, floor = (parameters[:, i, None, None, None] for i in range(3))
            mean = local_mean(image)
            deviation = local_mean((image - mean) ** 2)
            noise = torch.maximum(slope * mean + offset, floor)
            gain = (deviation - noise).clamp(min=0) / deviation.clamp(min=1e-12)
            restored = image + strength[:, None, None, None] * (mean + gain * (image - mean) - image)
            return restored, noise.clamp(min=0).sqrt()

    class Bilinear(torch.nn.Module):
        def forward(self, image):
            return functional.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)

    module = {"estimate": Estimate(), "restore": Wiener() if name == "tiny" else Bilinear()}[graph].eval()
    tensors = tuple(torch.from_numpy(value) for value in inputs.values())
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, the format is part of the contract
        torch.jit.trace(module, tensors, check_trace=False).save(path)
        result = module(*tensors)
    return [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]


def _model(nodes: list, constants: dict, inputs: dict, outputs: dict):
    """An ONNX model from nodes, constant arrays, and named shapes."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def values(shapes):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]

    initialisers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


IMAGE = {"image": ["B", 1, "H", "W"]}


def _estimate_onnx():
    from onnx.helper import make_node as node

    nodes = [
        node("Pad", ["image", "pads"], ["padded"], mode="edge"),
        node("Conv", ["padded", "laplacian"], ["edges"]),
        node("Abs", ["edges"], ["magnitude"]),
        node("ReduceMean", ["magnitude"], ["mean"], axes=[2, 3], keepdims=0),  # (B, 1)
        node("Mul", ["mean", "factor"], ["sigma"]),
        node("Mul", ["sigma", "sigma"], ["variance"]),
        node("Mul", ["variance", "zero"], ["nothing"]),
        node("Concat", ["nothing", "variance", "nothing"], ["parameters"], axis=1),
    ]
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "laplacian": np.array(LAPLACIAN, np.float32)[None, None],
        "factor": np.float32(math.sqrt(math.pi / 2) / 6),
        "zero": np.float32(0),
    }
    return _model(nodes, constants, IMAGE, {"parameters": ["B", 3]})


def _wiener_onnx():
    from onnx.helper import make_node as node

    nodes = [
        *(node("Gather", ["parameters", f"index_{n}"], [f"{n}_column"], axis=1) for n in ("slope", "offset", "floor")),
        *(node("Unsqueeze", [f"{n}_column", "plane"], [n]) for n in ("slope", "offset", "floor")),
        node("Unsqueeze", ["strength", "tail"], ["amount"]),
        node("Pad", ["image", "pads"], ["padded"], mode="edge"),
        node("Conv", ["padded", "box"], ["mean"]),
        node("Sub", ["image", "mean"], ["detail"]),
        node("Mul", ["detail", "detail"], ["square"]),
        node("Pad", ["square", "pads"], ["square_padded"], mode="edge"),
        node("Conv", ["square_padded", "box"], ["deviation"]),
        node("Mul", ["slope", "mean"], ["signal"]),
        node("Add", ["signal", "offset"], ["line"]),
        node("Max", ["line", "floor"], ["variance"]),
        node("Sub", ["deviation", "variance"], ["excess"]),
        node("Max", ["excess", "zero"], ["kept"]),
        node("Max", ["deviation", "tiny"], ["divisor"]),
        node("Div", ["kept", "divisor"], ["gain"]),
        node("Mul", ["gain", "detail"], ["kept_detail"]),
        node("Add", ["mean", "kept_detail"], ["filtered"]),
        node("Sub", ["filtered", "image"], ["change"]),
        node("Mul", ["amount", "change"], ["step"]),
        node("Add", ["image", "step"], ["restored"]),
        node("Max", ["variance", "zero"], ["positive"]),
        node("Sqrt", ["positive"], ["noise"]),
    ]
    margin = WINDOW // 2
    constants = {
        "index_slope": np.array([0]),
        "index_offset": np.array([1]),
        "index_floor": np.array([2]),
        "plane": np.array([2, 3]),
        "tail": np.array([1, 2, 3]),
        "pads": np.array([0, 0, margin, margin, 0, 0, margin, margin]),
        "box": np.full((1, 1, WINDOW, WINDOW), 1 / WINDOW**2, np.float32),
        "zero": np.float32(0),
        "tiny": np.float32(1e-12),
    }
    inputs = {**IMAGE, "parameters": ["B", 3], "strength": ["B"]}
    return _model(nodes, constants, inputs, {"restored": ["B", 1, "H", "W"], "noise": ["B", 1, "H", "W"]})


def _bilinear_onnx():
    from onnx.helper import make_node as node

    nodes = [node("Resize", ["image", "", "scales"], ["restored"], mode="linear")]
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    return _model(nodes, constants, IMAGE, {"restored": ["B", 1, "2*H", "2*W"]})
