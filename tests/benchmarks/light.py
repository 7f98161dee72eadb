"""A light denoiser, made on the spot: 5 layers of 3 x 3, 16 channels, so that serving costs as much as computing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_bundle import IMAGE, Graph, estimate_onnx, onnx_model, write_bundle

LAYERS, CHANNELS = 5, 16
TILES = [(side, side) for side in (64, 128, 192, 256, 384, 512, 1024)]  # as those of the shipped denoiser


def write_light(root: Path, version: str = "1", layers: int = LAYERS, channels: int = CHANNELS) -> Path:
    """`light/<version>`: restored = image - strength * network(image); each version has weights of its own."""
    image = np.random.default_rng(7).uniform(0.0, 1.0, (1, 1, 64, 64)).astype(np.float32)
    restore = {
        "image": image,
        "parameters": np.array([[0.0, 0.0004, 0.0]], np.float32),
        "strength": np.ones(1, np.float32),
    }
    models = {"estimate": estimate_onnx(), "restore": _network(layers, channels, seed=int(version))}
    inputs = {"estimate": {"image": image}, "restore": restore}
    graphs = {name: Graph(model, inputs[name], _answers(model, inputs[name])) for name, model in models.items()}
    return write_bundle(root, "light", graphs, version=version, tiles=TILES, precisions=["fp32"])


def _answers(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    from app.backends.base import plugin

    plugin("onnx")  # first, because it switches the telemetry of onnxruntime off
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def _network(layers: int, channels: int, seed: int) -> Any:
    from onnx.helper import make_node as node

    random = np.random.default_rng(seed)
    constants: dict[str, Any] = {"column": np.array([1]), "tail": np.array([1, 2, 3]), "plane": np.array([2, 3])}
    constants["zero"] = np.float32(0)
    nodes, value = [], "image"
    for index, (given, made) in enumerate(pairwise([1, *[channels] * (layers - 1), 1])):
        kernel = random.normal(0, np.sqrt(1 / (9 * given)), (made, given, 3, 3))
        constants[f"kernel{index}"] = (kernel * (0.02 if index == layers - 1 else 1)).astype(np.float32)
        nodes.append(node("Conv", [value, f"kernel{index}"], [f"conv{index}"], pads=[1, 1, 1, 1]))
        value = f"conv{index}"
        if index < layers - 1:
            nodes.append(node("Relu", [value], [f"relu{index}"]))
            value = f"relu{index}"
    nodes += [
        node("Unsqueeze", ["strength", "tail"], ["amount"]),
        node("Mul", [value, "amount"], ["step"]),
        node("Sub", ["image", "step"], ["restored"]),
        node("Gather", ["parameters", "column"], ["offset"], axis=1),
        node("Unsqueeze", ["offset", "plane"], ["variance"]),
        node("Max", ["variance", "zero"], ["positive"]),
        node("Sqrt", ["positive"], ["level"]),
        node("Mul", ["image", "zero"], ["blank"]),
        node("Add", ["blank", "level"], ["noise"]),
    ]
    inputs = {**IMAGE, "parameters": ["B", 3], "strength": ["B"]}
    return onnx_model(nodes, constants, inputs, {"restored": ["B", 1, "H", "W"], "noise": ["B", 1, "H", "W"]})
