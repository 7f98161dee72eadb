"""TorchScript through PyTorch, on the CPU or a CUDA device. The only module of `app` that imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.backends.base import Array, Backend, cuda_index
from app.errors import BackendUnavailable
from models.bundle import Bundle
from models.errors import BundleInvalid

# TorchScript names neither inputs nor outputs; these are the bundle contract's, in order.
INPUTS: Mapping[str, tuple[str, ...]] = {"estimate": ("image",), "restore": ("image", "parameters", "strength")}
OUTPUTS: Mapping[str, tuple[str, ...]] = {"estimate": ("parameters",), "restore": ("restored", "noise")}


@dataclass(frozen=True)
class TorchScriptBackend:
    """One scripted module for each graph."""

    device: str
    precision: str
    modules: Mapping[str, Any]
    threads: int | None
    name: str = "torchscript"

    def run(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        torch: Any = import_module("torch")
        if self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        inputs = [
            torch.tensor(np.ascontiguousarray(arrays[name]), device=self.device)
            for name in INPUTS[graph]
            if name in arrays
        ]
        # The optimiser changes the code after the first runs, and with it the last bits.
        plain = torch.jit.optimized_execution(False)
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), plain, exact:
            result = self.modules[graph](*inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        return {name: value.cpu().numpy() for name, value in zip(OUTPUTS[graph], outputs, strict=False)}

    def release(self, inputs: Mapping[str, Mapping[str, Array]]) -> None:
        """See `app.backends.base.Backend`: PyTorch keeps none on the CPU."""


def unavailable() -> str | None:
    """Why PyTorch cannot be used here, or None."""
    return None if find_spec("torch") else "PyTorch is not installed: pip install 'medrestore[torch]'"


def load(bundle: Bundle, device: str, precision: str, threads: int | None) -> Backend:
    """Loads every graph of the bundle. See `app.backends.base.load`."""
    if precision != "fp32":  # autocast does not reach inside a traced graph, and pure bf16 would round the image
        raise BackendUnavailable(f"backend torchscript runs fp32 only; {precision} on the CPU is backend openvino's")
    torch: Any = import_module("torch")
    index = cuda_index(device)
    if index is not None and index >= torch.cuda.device_count():
        raise BackendUnavailable(f"{device} was required, but PyTorch sees {torch.cuda.device_count()} CUDA devices")
    modules = {}
    for graph in bundle.manifest.graphs:
        path = bundle.graph(graph, "torchscript")
        try:
            with warnings.catch_warnings():  # PyTorch deprecates TorchScript; the format is part of the contract
                warnings.simplefilter("ignore", DeprecationWarning)
                modules[graph] = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as exc:
            raise BundleInvalid(f"{bundle.reference}: {path.name} does not load in PyTorch: {exc}") from exc
    return TorchScriptBackend(device, precision, modules, threads)
