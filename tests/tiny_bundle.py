"""Small real bundles for the tests: the same graphs as ONNX and as TorchScript."""

from __future__ import annotations

import math
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import GOLDEN, MANIFEST, FileEntry, Manifest, sha256_of, write_manifest

WINDOW = 5  # side of the box that local means are taken over
LAPLACIAN = [[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]  # Immerkær 1996, eq. 3
SLOW_COUNT = 1_000_000
FORMATS = {".onnx": "onnx", ".ts": "torchscript"}
IMAGE = {"image": ["B", 1, "H", "W"]}
LEVEL = ["variance_slope", "variance_offset", "variance_floor"]
COLOUR_NAMES = ["correlation_down_1", "correlation_across_1", "correlation_down_2", "correlation_across_2"]
COLOUR = (0.25, 0.5, -0.125, 0.0625)


@dataclass
class Graph:
    """One graph of a bundle to be written; without a module there is no TorchScript twin."""

    model: Any  # onnx.ModelProto
    inputs: dict[str, np.ndarray]
    outputs: list[np.ndarray] | None = None  # golden; None: what the module answers
    module: Any = None  # torch.nn.Module


def write_tiny(root: Path) -> None:
    """`tiny/1`: a Wiener filter and Immerkær's noise estimate; `tiny-x2/1`: bilinear interpolation."""
    x = np.random.default_rng(7).uniform(0.0, 1.0, (1, 1, 24, 32)).astype(np.float32)
    parameters = np.array([[0.01, 0.002, 0.001]], np.float32)
    estimate, wiener, bilinear = _modules()
    restore = {"image": x, "parameters": parameters, "strength": np.ones(1, np.float32)}
    graphs = {
        "estimate": Graph(estimate_onnx(), {"image": x}, module=estimate),
        "restore": Graph(_wiener_onnx(), restore, module=wiener),
    }
    write_bundle(root, "tiny", graphs)
    write_bundle(root, "tiny-x2", {"restore": Graph(_bilinear_onnx(), {"image": x}, module=bilinear)}, scale=2)


def write_coloured(root: Path) -> None:
    """`coloured/1`: as `tiny/1`, with an estimator that tells of correlations `COLOUR`, whatever the image."""
    x = np.random.default_rng(7).uniform(0.0, 1.0, (1, 1, 24, 32)).astype(np.float32)
    estimate, wiener, _ = _modules(coloured=True)
    restore = {"image": x, "parameters": np.array([[0.01, 0.002, 0.001, *COLOUR]], np.float32)}
    graphs = {
        "estimate": Graph(estimate_onnx(coloured=True), {"image": x}, module=estimate),
        "restore": Graph(_wiener_onnx(3 + len(COLOUR)), {**restore, "strength": np.ones(1, np.float32)}, module=wiener),
    }
    write_bundle(root, "coloured", graphs, parameters=[*LEVEL, *COLOUR_NAMES], trained_correlation=(-0.2, 0.7))


def write_slow(root: Path) -> None:
    """`slow/1` (x2): nearest neighbour that first counts to `SLOW_COUNT` times the largest pixel."""
    image = np.zeros((1, 1, 8, 8), np.float32)
    outputs = [np.zeros((1, 1, 16, 16), np.float32)]
    write_bundle(root, "slow", {"restore": Graph(_slow_onnx(), {"image": image}, outputs)}, scale=2)


def write_picky(root: Path) -> None:
    """`picky/1` (x2): nearest neighbour that fails on a batch with any pixel of 1 or more."""
    image = np.full((1, 1, 8, 8), 0.5, np.float32)
    outputs = [np.full((1, 1, 16, 16), 0.5, np.float32)]
    write_bundle(root, "picky", {"restore": Graph(_picky_onnx(), {"image": image}, outputs)}, scale=2)


def write_bundle(
    root: Path, name: str, graphs: dict[str, Graph], scale: int = 1, version: str = "1", **promises: Any
) -> Path:
    """Writes the bundle's folder: graphs, golden answers, manifest."""
    import onnx

    folder = root / name / version
    folder.mkdir(parents=True)
    golden: dict[str, np.ndarray] = {}
    for graph, content in graphs.items():
        onnx.save(content.model, folder / f"{graph}.onnx")
        outputs = content.outputs or _trace(content.module, content.inputs, folder / f"{graph}.ts")
        names = [output.name for output in content.model.graph.output]
        golden |= {f"{graph}.in.{key}": value for key, value in content.inputs.items()}
        golden |= {f"{graph}.out.{key}": value for key, value in zip(names, outputs, strict=True)}
    np.savez(folder / GOLDEN, **golden)
    seal(folder, scale, **promises)
    return folder


def copy_bundle(root: Path, source: str, name: str, version: str, scale: int = 1) -> Path:
    """The bundle `source`, version 1, under another name and version."""
    folder = root / name / version
    shutil.copytree(root / source / "1", folder)
    (folder / MANIFEST).unlink()
    seal(folder, scale)
    return folder


def spoil_golden(folder: Path, scale: int = 1) -> None:
    """Has a bundle that verifies fail its self-test."""
    golden = dict(np.load(folder / GOLDEN))
    golden["restore.out.restored"] += 0.5
    np.savez(folder / GOLDEN, **golden)
    seal(folder, scale)


def seal(folder: Path, scale: int = 1, **promises: Any) -> None:
    """Writes the manifest of what the folder holds; `promises` replace its fields."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    graphs: dict[str, dict[str, str]] = {}
    for path in files:
        if path.suffix in FORMATS:
            graphs.setdefault(path.stem, {})[FORMATS[path.suffix]] = path.name
    denoise = scale == 1
    manifest = Manifest(
        name=folder.parent.name,
        version=folder.name,
        task="denoise" if denoise else "superresolve",
        scale=scale,
        network="test",
        summary="a fixture of the tests",
        licence="Apache-2.0",
        graphs=graphs,
        files={path.name: FileEntry(sha256_of(path), path.stat().st_size) for path in files},
        tiles=[(16, 16), (32, 32), (64, 64)],
        multiple=8,
        halo=8,
        parameters=LEVEL if denoise else [],
        precisions=["fp32", "bf16"],
        trained_sigma=(0.0, 0.2) if denoise else (0.0, 0.0),
    )
    write_manifest(folder, replace(manifest, **promises))


def _trace(module: Any, inputs: dict[str, np.ndarray], path: Path) -> list[np.ndarray]:
    """Writes the module as TorchScript; gives what it answers."""
    import torch

    tensors = tuple(torch.tensor(value) for value in inputs.values())
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, the format is part of the contract
        torch.jit.trace(module, tensors, check_trace=False).save(path)
        result = module(*tensors)
    return [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]


def _modules(coloured: bool = False) -> tuple[Any, Any, Any]:
    """Estimate, Wiener filter and bilinear interpolation in PyTorch."""
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
            colour = [variance * 0 + value for value in COLOUR] if coloured else []
            return torch.cat([variance * 0, variance, variance * 0, *colour], 1)

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

    return Estimate().eval(), Wiener().eval(), Bilinear().eval()


def onnx_model(nodes: list, constants: dict, inputs: dict, outputs: dict):
    """An ONNX model from nodes, constant arrays, and named shapes."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def values(shapes):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]

    initialisers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def estimate_onnx(coloured: bool = False):
    from onnx.helper import make_node as node

    nodes = [
        node("Pad", ["image", "pads"], ["padded"], mode="edge"),
        node("Conv", ["padded", "laplacian"], ["edges"]),
        node("Abs", ["edges"], ["magnitude"]),
        node("ReduceMean", ["magnitude"], ["mean"], axes=[2, 3], keepdims=0),  # (B, 1)
        node("Mul", ["mean", "factor"], ["sigma"]),
        node("Mul", ["sigma", "sigma"], ["variance"]),
        node("Mul", ["variance", "zero"], ["nothing"]),
        *([node("Add", ["nothing", "colour"], ["correlations"])] if coloured else []),
        node("Concat", ["nothing", "variance", "nothing", *(["correlations"] * coloured)], ["parameters"], axis=1),
    ]
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "laplacian": np.array(LAPLACIAN, np.float32)[None, None],
        "factor": np.float32(math.sqrt(math.pi / 2) / 6),
        "zero": np.float32(0),
    } | ({"colour": np.array([COLOUR], np.float32)} if coloured else {})
    return onnx_model(nodes, constants, IMAGE, {"parameters": ["B", 3 + len(COLOUR) * coloured]})


def _wiener_onnx(parameters: int = 3):
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
    inputs = {**IMAGE, "parameters": ["B", parameters], "strength": ["B"]}
    return onnx_model(nodes, constants, inputs, {"restored": ["B", 1, "H", "W"], "noise": ["B", 1, "H", "W"]})


def _bilinear_onnx():
    from onnx.helper import make_node as node

    nodes = [node("Resize", ["image", "", "scales"], ["restored"], mode="linear")]
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    return onnx_model(nodes, constants, IMAGE, {"restored": ["B", 1, "2*H", "2*W"]})


def _slow_onnx():
    from onnx import TensorProto, helper
    from onnx.helper import make_node as node

    scalar = [helper.make_tensor_value_info(n, t, []) for n, t in (("i", TensorProto.INT64), ("on", TensorProto.BOOL))]
    state = [helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in ("before", "after")]
    still_on = helper.make_tensor_value_info("still_on", TensorProto.BOOL, [])
    steps = [node("Identity", ["on"], ["still_on"]), node("Sin", ["before"], ["after"])]
    body = helper.make_graph(steps, "count", [*scalar, state[0]], [still_on, state[1]])
    nodes = [
        node("ReduceMax", ["image"], ["largest"], keepdims=0),
        node("Mul", ["largest", "factor"], ["product"]),
        node("Cast", ["product"], ["trips"], to=TensorProto.INT64),
        node("Loop", ["trips", "", "largest"], ["sine"], body=body),
        node("Mul", ["sine", "zero"], ["nothing"]),
        node("Resize", ["image", "", "scales"], ["large"], mode="nearest"),
        node("Add", ["large", "nothing"], ["restored"]),
    ]
    constants = {
        "factor": np.float32(SLOW_COUNT),
        "zero": np.float32(0),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    return onnx_model(nodes, constants, IMAGE, {"restored": ["B", 1, "2*H", "2*W"]})


def _picky_onnx():
    from onnx import TensorProto
    from onnx.helper import make_node as node

    nodes = [
        node("ReduceMax", ["image"], ["largest"], keepdims=0),
        node("Cast", ["largest"], ["index"], to=TensorProto.INT64),
        node("Gather", ["one", "index"], ["factor"]),  # fails from 1 on
        node("Resize", ["image", "", "scales"], ["large"], mode="nearest"),
        node("Mul", ["large", "factor"], ["restored"]),
    ]
    constants = {"one": np.ones(1, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    return onnx_model(nodes, constants, IMAGE, {"restored": ["B", 1, "2*H", "2*W"]})
