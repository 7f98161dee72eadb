"""Exports a bundle anew from its own weights: `python -m training.reexport BUNDLE --to REPOSITORY`.

For bundles that were exported before something about exports changed. The weights are bit-equal in the new graphs;
name, version, scores, provenance and terms stay, the digest does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.bundle import GOLDEN, Bundle, FileEntry, read_bundle, sha256_of, write_manifest
from models.networks.denoiser import Denoiser
from models.networks.registry import build_network
from training.export import Graph, fold, graph_of, tiles_exactly, write_graphs
from training.start import begin
from training.tiling import tiling_facts

Weights = dict[str, NDArray[np.float32]]


def weights_of(path: Path) -> Weights:
    """The weights in an ONNX file, by their names there."""
    import onnx

    tensors = onnx.load(str(path)).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}


def options_of(bundle: Bundle, graph: str) -> dict[str, Any]:
    """Name and options of a graph's network, from the configuration that the bundle was made with."""
    record, manifest = bundle.manifest.provenance, bundle.manifest
    fit: dict[str, Any]
    if "config" in record:  # of a network by itself
        fit = record["config"][graph]
    elif manifest.task == "superresolve":  # the settings of such a run hold for either scale
        fit = record["pipeline"]["config"]["restore"]["fit"]
        fit = fit | {"options": {"scale": manifest.scale, **fit["options"]}}
    else:
        fit = record["pipeline"]["config"]["profound"][graph]
    return fit


def trained(bundle: Bundle, graph: str) -> nn.Module:
    """A graph's network with the weights that training can go on from, as it was trained: not folded.

    Raises ValueError where the bundle holds none, or those of another network.
    """
    fit = options_of(bundle, graph)
    network = build_network(fit["network"], fit["options"])
    module: nn.Module = Denoiser(network) if (bundle.manifest.task, graph) == ("denoise", "restore") else network
    return begin(module, str(bundle.folder), graph)


def rebuild(bundle: Bundle) -> list[Graph]:
    """The graphs of a bundle as modules. Raises ValueError as `trained` does."""
    names = sorted(bundle.manifest.graphs)  # the estimate before what it informs
    modules = {name: fold(trained(bundle, name)) for name in names}
    exact = tiles_exactly(modules["restore"])
    return [graph_of(bundle.manifest.task, name, module, exact) for name, module in modules.items()]


def reexport(bundle: Bundle, repository: Path, sides: Sequence[int] = ()) -> Bundle:
    """Writes `<repository>/<name>/<version>`, in place of a version that is there; `sides` are those of its tiles, if
    they are to be others."""
    graphs, manifest = rebuild(bundle), bundle.manifest
    if sides:
        manifest = dataclasses.replace(manifest, tiles=[(side, side) for side in sides])
    target = repository / manifest.name / manifest.version
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        staged = Path(folder) / manifest.name / manifest.version
        staged.mkdir(parents=True)
        made = {file for formats in manifest.graphs.values() for file in formats.values()} | {GOLDEN}
        for file in set(manifest.files) - made:
            shutil.copyfile(bundle.folder / file, staged / file)
        parities = write_graphs(graphs, staged)
        for name in manifest.graphs:
            check_equal(weights_of(bundle.graph(name, "onnx")), weights_of(staged / f"{name}.onnx"), name)
        facts = tiling_facts(graphs, staged, multiple=manifest.multiple, halo=manifest.halo, tiles=manifest.tiles)
        files = {f.name: FileEntry(sha256_of(f), f.stat().st_size) for f in sorted(staged.iterdir())}
        told = list(graphs[-1].parameters) if manifest.task == "denoise" else []
        write_manifest(staged, dataclasses.replace(manifest, files=files, parity=parities, parameters=told, **facts))
        read_bundle(staged)
        if target.exists():
            shutil.rmtree(target)
        shutil.move(staged, target)
    return read_bundle(target)


def check_equal(before: Weights, after: Weights, graph: str) -> None:
    """Raises ValueError unless every weight is there again, bit for bit."""
    for name, weight in before.items():
        if name not in after or after[name].tobytes() != weight.tobytes():
            raise ValueError(f"{graph}: weight {name} is not what it was; nothing was written")


def main(argv: list[str]) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder `<name>/<version>`")
    parser.add_argument("--to", type=Path, required=True, help="model repository")
    parser.add_argument("--tiles", type=int, nargs="+", default=[], metavar="SIDE", help="default: those it has")
    options = parser.parse_args(argv)
    bundle = reexport(read_bundle(options.bundle), options.to, options.tiles)
    facts = bundle.manifest
    print(
        f"{bundle.reference} {bundle.digest[:12]}: exact tiling {facts.exact_tiling}, seam {facts.seam:.2g}, "
        f"bytes per pixel {facts.bytes_per_pixel}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
