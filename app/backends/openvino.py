"""OpenVINO on the CPU, from the same ONNX file: fp32, and bf16 where the CPU has it (AMX, AVX-512 BF16).

What a network adds to or takes from the image may be bf16, with its 8 bits of mantissa; the image
itself must not be. OpenVINO keeps the end of a graph in fp32, and with it a subtraction from the
image, but not an interpolation of the image; so that one is cut off and runs as a graph of its own.

Importing openvino sends a usage event through its dependency openvino_telemetry, unasked. Marking
that module as absent before the import makes openvino take its own silent stub instead.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.backends.base import Array, Backend
from app.errors import BackendUnavailable
from models.bundle import Bundle
from models.errors import BundleInvalid

COMPILED_SHAPES = 16  # kept per graph; each costs the memory of its activations


@dataclass(frozen=True)
class Stage:
    """A part of a graph, and how it is compiled; what it gives, later parts may take by name."""

    model: Any
    settings: Mapping[str, Any]
    compiled: OrderedDict[Any, Any] = field(default_factory=OrderedDict)


class OpenVinoBackend:
    """A graph is compiled for each of the manifest's tile shapes at first use, once for all others.

    Fixed shapes run faster; which of the two a run takes depends on its shape alone.
    """

    name = "openvino"

    def __init__(self, stages: Mapping[str, Sequence[Stage]], tiles: frozenset[tuple[int, int]], precision: str):
        self.device = "cpu"
        self.precision = precision
        self._stages = stages
        self._tiles = tiles

    def run(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        known, outputs = dict(arrays), {}
        fixed = known["image"].shape[0] == 1 and known["image"].shape[2:] in self._tiles
        for stage in self._stages[graph]:
            names = [parameter.get_any_name() for parameter in stage.model.inputs]
            inputs = {name: np.ascontiguousarray(known[name]) for name in names}
            compiled = _compile(stage, inputs, fixed)
            results = compiled(inputs)
            # The arrays share memory with the request and would change with the next run.
            outputs = {output.get_any_name(): np.array(results[output]) for output in compiled.outputs}
            known |= outputs
        return outputs

    def release(self, inputs: Mapping[str, Mapping[str, Array]]) -> None:
        """See `app.backends.base.Backend`."""
        for stages in self._stages.values():
            for stage in stages:
                for compiled in stage.compiled.values():
                    compiled.release_memory()


def _compile(stage: Stage, inputs: Mapping[str, Array], fixed: bool) -> Any:
    shapes = tuple(sorted((name, array.shape) for name, array in inputs.items()))
    key = shapes if fixed else None
    if key not in stage.compiled:
        model = stage.model
        if fixed:
            model = model.clone()
            model.reshape({name: list(shape) for name, shape in shapes})
        stage.compiled[key] = _core().compile_model(model, "CPU", stage.settings)
        if len(stage.compiled) > COMPILED_SHAPES:
            stage.compiled.popitem(last=False)
    stage.compiled.move_to_end(key)
    return stage.compiled[key]


def unavailable() -> str | None:
    """Why OpenVINO cannot be used here, or None."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'medrestore[cpu]'"
    return None


def load(bundle: Bundle, device: str, precision: str, threads: int | None) -> Backend:
    """Reads every graph of the bundle. See `app.backends.base.load`."""
    if device != "cpu":
        raise BackendUnavailable(f"backend openvino runs on the CPU, not on {device}")
    core = _core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendUnavailable("this CPU has no bf16 instructions: use fp32")
    stages = {}
    for graph in bundle.manifest.graphs:
        path = bundle.graph(graph, "onnx")
        try:
            stages[graph] = _stages(core.read_model(path), precision, threads)
        except RuntimeError as exc:
            raise BundleInvalid(f"{bundle.reference}: {path.name} does not load in OpenVINO: {exc}") from exc
    return OpenVinoBackend(stages, frozenset(bundle.manifest.tiles), precision)


def _stages(model: Any, precision: str, threads: int | None) -> list[Stage]:
    """The whole graph; in bf16, an interpolation of the image first, in fp32."""
    whole = Stage(model, _settings(precision, threads))
    resizes = [node for node in model.get_ops() if node.get_type_name() == "Interpolate" and _takes_input(node)]
    if precision == "fp32" or not resizes:
        return [whole]
    openvino: Any = import_module("openvino")
    resized = resizes[0].output(0)
    name = resized.get_any_name()
    skip = openvino.Model([resized], model.get_parameters()).clone()
    given = openvino.opset13.parameter(resized.partial_shape, np.float32)
    for end in (skip.output(0), given.output(0)):
        end.get_tensor().set_names({name})
    for user in resized.get_target_inputs():
        user.replace_source_output(given.output(0))
    model.add_parameters([given])
    return [Stage(skip, _settings("fp32", threads)), whole]


def _takes_input(node: Any) -> bool:
    return bool(node.input_value(0).get_node().get_type_name() == "Parameter")


def _settings(precision: str, threads: int | None) -> dict[str, Any]:
    """Left alone, OpenVINO picks bf16 by itself on a CPU that has it; so the precision is always said."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # every process would pin to the same first cores
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    return settings


_shared: list[Any] = []


def _core() -> Any:
    """The process's one Core, made at first use."""
    if not _shared:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        openvino: Any = import_module("openvino")
        _shared.append(openvino.Core())
    return _shared[0]
