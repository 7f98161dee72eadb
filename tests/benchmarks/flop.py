"""Counts the multiplications and additions of an ONNX graph: two for each weight of a convolution or matrix product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def count_flop(path: Path, inputs: Mapping[str, np.ndarray]) -> int:
    """Operations of one run. Shapes are those of a real run, so keep `inputs` small and scale by the area."""
    import onnx

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes |= _run_shapes(
        model, {name for node in nodes for name in (*node.input[:2], node.output[0])} - set(shapes), inputs
    )
    return sum(_flop(node, shapes) for node in nodes)


def _run_shapes(model: Any, names: set[str], inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes of inner values, which become outputs for one run."""
    import onnx
    import onnxruntime

    given = {name: tuple(array.shape) for name, array in inputs.items() if name in names}
    inner = sorted(names - set(given) - {output.name for output in model.graph.output})
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(None, dict(inputs))
    return given | {output.name: value.shape for output, value in zip(session.get_outputs(), values, strict=True)}


def _flop(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    left, right, made = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":  # weights (outputs, inputs / groups, rows, columns), once per output
        return 2 * math.prod(made) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":  # weights (inputs, outputs / groups, rows, columns), once per input
        return 2 * math.prod(left) * math.prod(right[1:])
    flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(made) * left[-2 if flipped else -1]
