"""ONNX Runtime on the CPU or on a CUDA device. The only module that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.backends.base import Array, Backend, cuda_index
from app.errors import BackendUnavailable
from models.bundle import Bundle
from models.errors import BundleInvalid

# Its wheels report to the vendor unless this is set before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class OnnxBackend:
    """One session for each graph."""

    device: str
    precision: str
    sessions: Mapping[str, Any]
    name: str = "onnx"

    def run(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        session = self.sessions[graph]
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, {name: np.ascontiguousarray(array) for name, array in arrays.items()})
        return dict(zip(names, values, strict=True))

    def release(self, inputs: Mapping[str, Mapping[str, Array]]) -> None:
        """See `app.backends.base.Backend`. The arena shrinks at the end of a run that asks for it."""
        onnxruntime: Any = import_module("onnxruntime")
        options = onnxruntime.RunOptions()
        arena = "cpu:0" if self.device == "cpu" else f"gpu:{cuda_index(self.device)}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
        for graph, arrays in inputs.items():
            self.sessions[graph].run(None, dict(arrays), options)


def unavailable() -> str | None:
    """Why ONNX Runtime cannot be used here, or None."""
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'medrestore[cpu]' (or [gpu])"
    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(wheels) > 1:
        return (
            "onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, then install one extra, cpu or gpu"
        )
    return None


def load(bundle: Bundle, device: str, precision: str, threads: int | None) -> Backend:
    """Opens every graph of the bundle. See `app.backends.base.load`."""
    if precision != "fp32":
        raise BackendUnavailable(f"backend onnx runs fp32 only; {precision} on the CPU is backend openvino's")
    index = cuda_index(device)
    sessions = {graph: _open(bundle, graph, index, threads) for graph in bundle.manifest.graphs}
    return OnnxBackend(device, precision, sessions)


def _open(bundle: Bundle, graph: str, index: int | None, threads: int | None) -> Any:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.use_deterministic_compute = True
    options.inter_op_num_threads = 1
    if threads:
        options.intra_op_num_threads = threads
    # A thread that spins for the next node takes the core from other workers and from the service.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # fatal; errors are raised
    provider = CPU if index is None else CUDA
    missing = BackendUnavailable(
        f"cuda:{index} was required, but ONNX Runtime cannot use it: install medrestore[gpu] in place of "
        "medrestore[cpu], and an NVIDIA driver that fits its CUDA"
    )
    if provider not in onnxruntime.get_available_providers():
        raise missing
    if index is not None:
        onnxruntime.preload_dlls()
    path = bundle.graph(graph, "onnx")
    settings = {} if index is None else _cuda_settings(index)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[(provider, settings)])
    except Exception as exc:  # its errors share no base but Exception
        error = BundleInvalid if index is None else BackendUnavailable
        raise error(f"{bundle.reference}: {path.name} does not load on {provider}: {exc}") from exc
    # Without a usable GPU the session falls back to the CPU, and says so only here.
    if session.get_providers()[0] != provider:
        raise missing
    return session


def _cuda_settings(index: int) -> dict[str, str]:
    """Reproducible, true fp32, and a memory arena that does not double."""
    return {
        "device_id": str(index),
        "use_tf32": "0",
        "cudnn_conv_algo_search": "DEFAULT",  # EXHAUSTIVE picks by timing: another run, other bits
        "arena_extend_strategy": "kSameAsRequested",
    }


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
