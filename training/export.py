"""From trained weights to a verified bundle: `medrestore export RUN --to REPOSITORY --version V`.

Nothing is written before eager, ONNX and TorchScript agree at four shapes and three batch sizes.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import GOLDEN, FileEntry, Manifest, read_bundle, sha256_of, write_manifest
from models.networks.blind_spot import MaskedConv
from models.networks.denoiser import PARAMETERS, PEDESTAL, PedestalEstimate
from models.networks.layers import ZeroSumConv
from training.config import TrainConfig, recorded_config
from training.tiling import tiling_facts
from training.train import RUN, WEIGHTS, build_graph

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

OPSET = 18
SHAPES = ((64, 80), (61, 95), (128, 48), (8, 8))
BATCHES = (1, 3, 8)
TOLERANCE = 1e-4
WHITE, COLOURED = (-0.15, 0.15), (-0.15, 0.85)  # lag-1 correlations that a run has met, measurement error included
OWN = "no terms were given: the weights belong to whoever trained them"
Arrays = dict[str, NDArray[np.float32]]


class FoldedHead(nn.Module):
    """A ZeroSumConv with its kernel computed once; the same numbers without the work."""

    def __init__(self, head: ZeroSumConv) -> None:
        super().__init__()
        self.register_buffer("weight", head.zero_sum_weight().detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return nn.functional.conv2d(padded, self.weight)


def fold(network: nn.Module) -> nn.Module:
    """A copy of the network, in evaluation mode, with every ZeroSumConv and every mask folded."""
    network = copy.deepcopy(network).eval().cpu()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ZeroSumConv):
                setattr(parent, name, FoldedHead(child))
            elif isinstance(child, MaskedConv):
                setattr(parent, name, child.folded())
    return network


@dataclass(frozen=True)
class Graph:
    """One exported graph: its module and the names of what goes in and out."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[str, ...] = tuple(PARAMETERS)  # what an estimate gives and a restoration is told

    def example(self, batch: int, rows: int, columns: int, seed: int = 0) -> Arrays:
        """Random but repeatable inputs: a smooth image with noise, a noise law, strengths."""
        rng = np.random.default_rng(seed)
        grid = np.add.outer(np.arange(rows) / 17.0, np.arange(columns) / 11.0)
        image = 0.5 + 0.3 * np.sin(grid) + 0.05 * rng.standard_normal((batch, 1, rows, columns))
        told = np.array([0.001, 0.0025, 0.0001, 0.5, 0.3, 0.1, -0.1, 0.5], dtype=np.float32)[: len(self.parameters)]
        everything = {
            "image": image.astype(np.float32),
            "parameters": np.tile(told, (batch, 1)),
            "strength": np.linspace(0.5, 1.5, batch, dtype=np.float32),
        }
        return {name: everything[name] for name in self.inputs}

    def eager(self, arrays: Arrays) -> Arrays:
        with torch.no_grad():
            out = self.module(*(torch.from_numpy(arrays[name]) for name in self.inputs))
        tensors = out if isinstance(out, tuple) else (out,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}


def graph_of(task: str, name: str, module: nn.Module, exact: bool = False) -> Graph:
    """Names the inputs and outputs of a bundle's graph (see `models.bundle`); `exact` where its tiling is."""
    told = (*PARAMETERS, PEDESTAL) if exact else tuple(PARAMETERS)
    if name == "estimate":
        return Graph(name, PedestalEstimate(module).eval() if exact else module, ("image",), ("parameters",), told)
    if task == "superresolve":
        return Graph(name, module, ("image",), ("restored",))
    return Graph(name, module, ("image", "parameters", "strength"), ("restored", "noise"), told)


def export_onnx(graph: Graph, path: Path) -> None:
    """Writes an ONNX file with free batch, rows and columns, and no path or source line in it."""
    arrays = graph.example(2, 64, 80)
    axes: dict[str, dict[int, str]] = {}
    for name in (*graph.inputs, *graph.outputs):
        spatial = name not in ("parameters", "strength")
        suffix = "_out" if name == "restored" and len(graph.inputs) == 1 else ""
        axes[name] = {0: "batch", **({2: "rows" + suffix, 3: "columns" + suffix} if spatial else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module,
            tuple(torch.from_numpy(arrays[name]) for name in graph.inputs),
            str(path),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    strip_onnx(path)


def strip_onnx(path: Path) -> None:
    """Takes doc strings and metadata out: they hold source paths of the exporting machine."""
    import onnx

    model = onnx.load(str(path))
    model.doc_string = ""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def export_torchscript(graph: Graph, path: Path) -> None:
    """Writes a traced TorchScript file without source locations."""
    arrays = graph.example(2, 64, 80)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            graph.module, tuple(torch.from_numpy(arrays[name]) for name in graph.inputs), check_trace=False
        )
        torch.jit.freeze(traced).save(str(path))
    strip_torchscript(path)


def strip_torchscript(path: Path) -> None:
    """Takes the debug records out of a TorchScript archive: they hold source paths of this machine."""
    reader = torch._C.PyTorchFileReader(str(path))
    kept = {name: reader.get_record(name) for name in reader.get_all_records() if not name.endswith(".debug_pkl")}
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, record in kept.items():
        if not name.startswith(".data/") and name != "version":  # the writer adds its own
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def run_onnx(path: Path, graph: Graph, arrays: Arrays) -> Arrays:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip(graph.outputs, session.run(list(graph.outputs), arrays), strict=True))


def run_torchscript(path: Path, graph: Graph, arrays: Arrays) -> Arrays:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = torch.jit.load(str(path))(*(torch.from_numpy(arrays[name]) for name in graph.inputs))
    tensors = out if isinstance(out, tuple) else (out,)
    return {name: tensor.numpy() for name, tensor in zip(graph.outputs, tensors, strict=True)}


RUNNERS = {"onnx": run_onnx, "torchscript": run_torchscript}


def parity(graph: Graph, format: str, path: Path) -> float:
    """Largest difference from the eager network over all shapes and batches.

    Raises ValueError where one is above 1e-4, or a shape differs.
    """
    worst = 0.0
    for shape in SHAPES:
        for batch in BATCHES:
            arrays = graph.example(batch, *shape, seed=batch)
            expected, found = graph.eager(arrays), RUNNERS[format](path, graph, arrays)
            for name in graph.outputs:
                difference = float(np.abs(expected[name] - found[name]).max())
                worst = max(worst, difference)
                if expected[name].shape != found[name].shape or not difference <= TOLERANCE:
                    raise ValueError(
                        f"{graph.name}: {format} differs from eager by {difference:.2e} in {name!r} "
                        f"at batch {batch}, shape {shape}; nothing was written"
                    )
    return worst


def write_golden(graphs: list[Graph], path: Path) -> None:
    """One input and output per graph: what a server's self-test repeats before it serves."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for graph in graphs:
        example = graph.example(1, 64, 64, seed=7)
        arrays |= {f"{graph.name}.in.{name}": value for name, value in example.items()}
        arrays |= {f"{graph.name}.out.{name}": value for name, value in graph.eager(example).items()}
    np.savez(path, **arrays)


def write_graphs(graphs: list[Graph], folder: Path) -> dict[str, float]:
    """Writes every graph in every format, and the golden file; gives the largest difference from eager by format."""
    parities: dict[str, float] = {}
    for graph in graphs:
        for format, write, suffix in (("onnx", export_onnx, "onnx"), ("torchscript", export_torchscript, "ts")):
            file = folder / f"{graph.name}.{suffix}"
            write(graph, file)
            parities[format] = max(parities.get(format, 0.0), parity(graph, format, file))
    write_golden(graphs, folder / GOLDEN)
    return parities


def load_graphs(run: Path, config: TrainConfig) -> list[Graph]:
    """The trained graphs of a run folder, folded and ready to export."""
    modules = {}
    for name, fit in config.fits.items():
        network = build_graph(config, name, fit)
        network.load_state_dict(torch.load(run / name / WEIGHTS, map_location="cpu", weights_only=True))
        modules[name] = fold(network)
    exact = tiles_exactly(modules["restore"])
    return [graph_of(config.task, name, module, exact) for name, module in modules.items()]


def tiles_exactly(module: nn.Module) -> bool:
    """Whether a restoration's network claims that its tiles add up to the whole."""
    return bool(getattr(module, "predictor", module).exact_tiling)


def geometry(config: TrainConfig, module: nn.Module) -> dict[str, Any]:
    """The size rule of the bundle's restore graph: multiple, halo, tiles.

    Where the tile is part of the model there is one: the first of which at least half, along a side, is kept. Raises
    ValueError where there is none.
    """
    network: Any = getattr(module, "predictor", module)
    multiple = max(8, network.multiple)
    halo = -(-(network.radius + 2) // multiple) * multiple  # 2: the noise map's own 5x5 mean
    sides = config.tiles if network.exact_tiling else [side for side in config.tiles if side >= 4 * halo][:1]
    if not sides:
        least = 4 * halo
        raise ValueError(f"tiles: {config.restore.network} sees {halo} pixels around; one of {least} or more is needed")
    return {"multiple": multiple, "halo": halo, "tiles": [(side, side) for side in sides]}


def export(
    run: Path,
    repository: Path,
    version: str,
    scores: dict[str, Any],
    *,
    name: str | None = None,
    provenance: dict[str, Any] | None = None,
    attached: Sequence[Path] = (),
    licence: str = "",
    consistency: float | None = None,
) -> Path:
    """Exports, proves and writes `<repository>/<name>/<version>`; returns that folder.

    The name is the configuration's own, the provenance the run's record, unless given; `attached` files are copied
    into the bundle. Without a licence, that of the bundle which training went on from holds for these weights too.
    A run that was trained adversarially says so in its record, and then its bundle does.
    """
    record = json.loads((run / RUN).read_text(encoding="utf-8"))
    config = recorded_config(record)
    config = dataclasses.replace(config, name=name or config.name)
    target = repository / config.name / version
    if target.exists():
        raise ValueError(f"{config.name}@{version} exists already; versions are never overwritten")
    graphs = load_graphs(run, config)
    licence = licence or licence_of(record)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        staged = Path(folder) / config.name / version
        staged.mkdir(parents=True)
        parities = write_graphs(graphs, staged)
        for graph in graphs:
            shutil.copyfile(run / graph.name / WEIGHTS, staged / f"{graph.name}.pt")  # what training can go on from
        for file in attached:
            shutil.copyfile(file, staged / file.name)
        made = (parities, provenance or record, scores, licence)
        manifest = make_manifest(config, version, graphs, staged, *made)
        adversarial = record.get("adversarial", False)
        write_manifest(staged, dataclasses.replace(manifest, adversarial=adversarial, consistency=consistency))
        read_bundle(staged)
        shutil.move(staged, target)
    return target


def licence_of(record: dict[str, Any]) -> str:
    """The terms of a run's weights where none are given: those of what it went on from."""
    licence: str = (record.get("start") or {}).get("licence", OWN)
    return licence


def make_manifest(
    config: TrainConfig,
    version: str,
    graphs: list[Graph],
    staged: Path,
    parities: dict[str, float],
    record: dict[str, Any],
    scores: dict[str, Any],
    licence: str,
) -> Manifest:
    """The manifest for the files that lie in `staged`."""
    restore = graphs[-1]
    files = {f.name: FileEntry(sha256_of(f), f.stat().st_size) for f in sorted(staged.iterdir())}
    return Manifest(
        name=config.name,
        version=version,
        task=config.task,
        scale=config.scale,
        network=config.restore.network,
        summary=config.summary,
        licence=licence,
        graphs={g.name: {"onnx": f"{g.name}.onnx", "torchscript": f"{g.name}.ts"} for g in graphs},
        files=files,
        parameters=list(restore.parameters) if config.task == "denoise" else [],
        precisions=["fp32", "bf16"],
        # no lower end: the networks are homogeneous, so a weak noise is a strong one on a smaller scale
        trained_sigma=(0.0, config.noise.highest) if config.task == "denoise" else (0.0, 0.0),
        trained_correlation=WHITE if config.noise.coloured_share == 0 else COLOURED,
        parity=parities,
        scores=scores,
        provenance=record,
        **tiling_facts(graphs, staged, **geometry(config, restore.module)),
    )


def main(argv: list[str]) -> int:
    """Entry point of `medrestore export`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="medrestore export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that `medrestore train` wrote")
    parser.add_argument("--to", type=Path, required=True, help="model repository")
    parser.add_argument("--version", required=True)
    parser.add_argument("--scores", type=Path, help="JSON that `medrestore evaluate --json` wrote")
    parser.add_argument("--licence", default="", help="terms of the weights; default: those of what they started from")
    options = parser.parse_args(argv)
    scores = json.loads(options.scores.read_text(encoding="utf-8")) if options.scores else {}
    target = export(options.run, options.to, options.version, scores, licence=options.licence)
    print(f"wrote {target.parent.name}@{target.name}")
    return 0
