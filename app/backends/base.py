"""What a runtime must offer, the list of runtimes, and the self-test every loaded bundle must pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import BytesIO
from typing import Any, Protocol, cast
from zipfile import BadZipFile

import numpy as np

from app.errors import BackendUnavailable
from models.bundle import GOLDEN, Bundle
from models.errors import BundleInvalid

Array = np.ndarray[Any, Any]

PRECISIONS = ("fp32", "bf16")  # exact, fast

# name -> module with `unavailable() -> str | None` and `load(bundle, device, precision, threads) -> Backend`
MODULES: Mapping[str, str] = {
    "onnx": "app.backends.onnx",
    "openvino": "app.backends.openvino",
    "torchscript": "app.backends.torchscript",
}

# Largest difference from the golden answer: absolute in fp32; in bf16, whose mantissa has 8 bits, a
# share of the answer's peak.
FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 0.05
WARM_PIXELS = 512 * 512

# What the runtimes say where memory is short: ONNX Runtime's arenas and cuBLAS, OpenVINO, PyTorch.
NO_MEMORY = (
    "bad allocation",
    "bad_alloc",
    "failed to allocate memory",
    "out of memory",
    "alloc_failed",
    "can't allocate memory",
    "not enough memory",
)


class Backend(Protocol):
    """A bundle loaded on one device at one precision."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def run(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Named float32 inputs (B, ...) to named float32 outputs (B, ...).

        The same inputs give the same bytes. Raises whatever the runtime raises.
        """
        ...

    def release(self, inputs: Mapping[str, Mapping[str, Array]]) -> None:
        """Gives back the memory that past runs took; may run graphs once more, on those inputs."""
        ...


class Plugin(Protocol):
    """What each module of `MODULES` offers."""

    def unavailable(self) -> str | None:
        """Why this runtime cannot be used here and what to install, or None."""
        ...

    def load(self, bundle: Bundle, device: str, precision: str, threads: int | None) -> Backend: ...


def plugin(name: str) -> Plugin:
    """The runtime's module, imported on first use. Raises BackendUnavailable on an unknown name."""
    if name not in MODULES:
        raise BackendUnavailable(f"no backend {name!r}; there are {', '.join(MODULES)}")
    return cast(Plugin, import_module(MODULES[name]))


def reasons() -> dict[str, str | None]:
    """Each backend, with why it cannot be used here, or None."""
    return {name: plugin(name).unavailable() for name in MODULES}


def load(name: str, bundle: Bundle, device: str, precision: str, threads: int | None = None) -> Backend:
    """Loads a verified bundle's graphs.

    `device` is "cpu" or "cuda:<index>"; `threads` bounds the CPU threads of one run (None: the
    runtime's choice). Raises BackendUnavailable where runtime, device or precision is not to be had,
    BundleInvalid where the bundle lacks the format or its graphs do not load.
    """
    if precision not in PRECISIONS:
        raise BackendUnavailable(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    module = plugin(name)
    if reason := module.unavailable():
        raise BackendUnavailable(reason)
    return module.load(bundle, device, precision, threads)


def cuda_index(device: str) -> int | None:
    """Index of "cuda:<index>", None for "cpu". Raises BackendUnavailable on anything else."""
    kind, _, index = device.partition(":")
    if device == "cpu":
        return None
    if kind == "cuda" and index.isdigit():
        return int(index)
    raise BackendUnavailable(f"device {device!r} is neither cpu nor cuda:<index>")


def self_test(backend: Backend, bundle: Bundle) -> None:
    """Runs every graph on the bundle's golden input, which also warms it up.

    Raises BundleInvalid where an answer is missing, not finite, or further from the stored one than
    the precision allows.
    """
    golden = read_golden(bundle)
    for graph in sorted(bundle.manifest.graphs):
        inputs, expected = (_side(golden, graph, side) for side in ("in", "out"))
        if not inputs or not expected:
            raise BundleInvalid(f"{bundle.reference}: {GOLDEN} says nothing about graph {graph!r}")
        answer = backend.run(graph, inputs)
        for name, wanted in expected.items():
            if name not in answer:
                raise BundleInvalid(f"{bundle.reference}: graph {graph!r} gives no output {name!r}")
            _compare(f"{bundle.reference}: {graph}.{name}", answer[name], wanted, backend)


def warm_up(backend: Backend, bundle: Bundle) -> None:
    """Runs every graph once at each of the bundle's tile shapes, so that no request pays for a first run.

    Tiles of more than `WARM_PIXELS` are left out: few images need them, and runtimes keep the memory.
    """
    for graph, inputs in golden_inputs(bundle).items():
        for rows, columns in (tile for tile in bundle.manifest.tiles if math.prod(tile) <= WARM_PIXELS):
            backend.run(graph, inputs | {"image": np.full((1, 1, rows, columns), 0.5, np.float32)})


def release(backend: Backend, bundle: Bundle) -> None:
    """Gives back what warming up took: images are mostly small, and a model at rest should be so, too."""
    backend.release(golden_inputs(bundle))


def lacked_memory(error: Exception) -> bool:
    """Whether a runtime failed for want of memory, so that a smaller run may succeed."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


def batch_invariant(backend: Backend, bundle: Bundle, items: int, pixels: int) -> bool:
    """Whether a tile gives the same bytes alone and at any place in a batch, beside others.

    No runtime promises this, so it is tried on each device, at each of the bundle's tile shapes, with up to `items`
    tiles of up to `pixels` in all. It holds for none but those shapes: where a plane's length is odd, the next
    one's alignment may change its last bits. Raises BundleInvalid where the golden file cannot be read.
    """
    for graph, inputs in golden_inputs(bundle).items():
        for shape in bundle.manifest.tiles:
            tile = inputs | {"image": np.resize(inputs["image"], (1, 1, *shape)).astype(np.float32)}
            other = tile | {"image": np.ascontiguousarray(tile["image"][..., ::-1])}
            most = min(items, pixels // math.prod(shape))
            answers = [backend.run(graph, each) for each in (tile, other)] if most > 1 else []
            for count in sorted({n for n in (2, 3, most) if 1 < n <= most}):
                kinds = [index % 2 for index in range(count)]
                if not same_together(backend, graph, [(tile, other)[k] for k in kinds], [answers[k] for k in kinds]):
                    return False
    return True


def same_together(
    backend: Backend, graph: str, items: Sequence[Mapping[str, Array]], alone: Sequence[Mapping[str, Array]]
) -> bool:
    """Whether items in one run, in this order, give the bytes that each gave `alone`."""
    together = backend.run(graph, {name: np.concatenate([item[name] for item in items]) for name in items[0]})
    return all(
        together[name][place].tobytes() == array[0].tobytes()
        for place, answer in enumerate(alone)
        for name, array in answer.items()
    )


def golden_inputs(bundle: Bundle) -> dict[str, dict[str, Array]]:
    """The stored input of each graph. Raises BundleInvalid."""
    golden = read_golden(bundle)
    return {graph: _side(golden, graph, "in") for graph in sorted(bundle.manifest.graphs)}


def _side(golden: Mapping[str, Array], graph: str, side: str) -> dict[str, Array]:
    head = f"{graph}.{side}."
    return {key.removeprefix(head): array for key, array in golden.items() if key.startswith(head)}


def read_golden(bundle: Bundle) -> dict[str, Array]:
    """Arrays of `golden.npz`, keyed `<graph>.in.<name>` and `<graph>.out.<name>`. Raises BundleInvalid."""
    try:
        # From memory: NumPy leaves a damaged file open.
        with np.load(BytesIO((bundle.folder / GOLDEN).read_bytes()), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, BadZipFile) as exc:
        raise BundleInvalid(f"{bundle.reference}: {GOLDEN} cannot be read: {exc}") from exc


def _compare(what: str, got: Array, wanted: Array, backend: Backend) -> None:
    runtime = f"{backend.name} {backend.precision} on {backend.device}"
    if got.shape != wanted.shape:
        raise BundleInvalid(f"{what} has shape {got.shape} from {runtime}, the golden answer {wanted.shape}")
    difference = float(np.max(np.abs(got.astype(np.float64) - wanted)))
    tolerance = FP32_TOLERANCE if backend.precision == "fp32" else BF16_TOLERANCE * float(np.max(np.abs(wanted)))
    if not difference <= tolerance:  # also true of NaN
        raise BundleInvalid(
            f"{what} is {difference:.3g} off the golden answer with {runtime} (at most {tolerance:.3g})"
        )
