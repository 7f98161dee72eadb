"""OpenVINO on the CPU, from the same ONNX file: fp32, and bf16 where the CPU has it (AMX, AVX-512 BF16).

Importing openvino sends a usage event through its dependency openvino_telemetry, unasked. Marking
that module as absent before the import makes openvino take its own silent stub instead.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.backends.base import Array, Backend
from app.errors import BackendUnavailable
from models.bundle import Bundle
from models.errors import BundleInvalid

COMPILED_SHAPES = 16  # kept per graph; each costs the memory of its activations


class OpenVinoBackend:
    """A graph is compiled for each of the manifest's tile shapes at first use, once for all others.

    Fixed shapes run faster; which of the two a run takes depends on its shape alone.
    """

    name = "openvino"

    def __init__(self, models: Mapping[str, Any], tiles: frozenset[tuple[int, int]], precision: str, settings: Any):
        self.device = "cpu"
        self.precision = precision
        self._models = models
        self._tiles = tiles
        self._settings = settings
        self._compiled: dict[str, OrderedDict[Any, Any]] = {graph: OrderedDict() for graph in models}

    def run(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        inputs = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        compiled = self._compile(graph, inputs)
        results = compiled(inputs)
        # The arrays share memory with the request and would change with the next run.
        return {output.get_any_name(): np.array(results[output]) for output in compiled.outputs}

    def _compile(self, graph: str, inputs: Mapping[str, Array]) -> Any:
        shapes = tuple(sorted((name, array.shape) for name, array in inputs.items()))
        fixed = inputs["image"].shape[0] == 1 and inputs["image"].shape[2:] in self._tiles
        key = shapes if fixed else None
        cache = self._compiled[graph]
        if key not in cache:
            model = self._models[graph]
            if fixed:
                model = model.clone()
                model.reshape({name: list(shape) for name, shape in shapes})
            cache[key] = _core().compile_model(model, "CPU", self._settings)
            if len(cache) > COMPILED_SHAPES:
                cache.popitem(last=False)
        cache.move_to_end(key)
        return cache[key]


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
    models = {}
    for graph in bundle.manifest.graphs:
        path = bundle.graph(graph, "onnx")
        try:
            models[graph] = core.read_model(path)
        except RuntimeError as exc:
            raise BundleInvalid(f"{bundle.reference}: {path.name} does not load in OpenVINO: {exc}") from exc
    return OpenVinoBackend(models, frozenset(bundle.manifest.tiles), precision, _settings(precision, threads))


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
