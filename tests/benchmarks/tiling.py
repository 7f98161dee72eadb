"""Tiled against whole for the shipped bundles: `python -m tests.benchmarks.tiling` prints the largest difference.

The whole is one run of the graph over the frame, with its reflection where tiles reach past it
(`models.imaging.tiles`). Stored values are what a 16-bit file would hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.backends.base import Backend, load
from app.settings import SHIPPED_BUNDLES
from models.bundle import Bundle, list_bundles, read_bundle
from models.imaging.codec import decode
from models.imaging.tiles import cut, merge, plan_tiles, whole_plan
from models.imaging.values import to_unit

Plane = NDArray[np.float32]
FULL_SCALE = 65535


@dataclass(frozen=True)
class Difference:
    """Tiled from whole; `stored` are 16-bit values that differ."""

    largest: float
    stored: int
    values: int


def retina(rows: int, columns: int) -> Plane:
    """Part of a photograph of a retina, with white noise."""
    from skimage import data

    plane = data.retina()[:rows, :columns, 1] / 255 + np.random.default_rng(0).normal(0, 0.03, (rows, columns))
    return (np.rint(plane.clip(0, 1) * FULL_SCALE) / FULL_SCALE).astype(np.float32)


def computed_tomography() -> Plane:
    """The CT slice that comes with pydicom, 128 x 128, beside its mirror images: 640 x 384."""
    from pydicom.data import get_testdata_file

    plane = to_unit(decode(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()))[0, 0]
    return np.pad(plane, ((0, 512), (0, 256)), "symmetric")


def inputs_for(backend: Backend, bundle: Bundle, plane: Plane) -> Mapping[str, Any]:
    """What `restore` is told beside the image."""
    if bundle.manifest.task != "denoise":
        return {}
    parameters = backend.run("estimate", {"image": plane[None, None]})["parameters"]
    return {"parameters": parameters, "strength": np.ones(1, np.float32)}


def difference(
    backend: Backend, bundle: Bundle, plane: Plane, tile: tuple[int, int], more: Mapping[str, Any]
) -> Difference:
    """Runs a plane whole and in tiles of one listed shape."""
    manifest = bundle.manifest
    sizes = (*plane.shape, manifest.tiles, manifest.multiple, manifest.halo)
    free, plan = plan_tiles(*sizes), plan_tiles(*sizes, [tile])

    def run(part: Plane) -> Plane:
        answer: Plane = backend.run("restore", {"image": part[None, None], **more})["restored"][0, 0]
        return answer

    one = whole_plan(free, manifest.multiple, manifest.halo)
    whole = merge([run(part) for part in cut(plane, one)], one, manifest.scale)
    tiled = merge([run(part) for part in cut(plane, plan)], plan, manifest.scale)
    stored = [np.rint(values.astype(np.float64) * FULL_SCALE) for values in (whole, tiled)]
    return Difference(float(np.abs(whole - tiled).max()), int(np.count_nonzero(stored[0] != stored[1])), whole.size)


def reach(backend: Backend, bundle: Bundle, side: int = 256) -> int:
    """Pixels that a change of one pixel is felt across, whichever pixel of the network's grid it is."""
    scale, multiple = bundle.manifest.scale, bundle.manifest.multiple
    plane = retina(side, side)
    more = inputs_for(backend, bundle, plane)
    before = backend.run("restore", {"image": plane[None, None], **more})["restored"][0, 0]
    farthest = 0
    for place in {side // 2, side // 2 + multiple // 2, side // 2 + multiple - 1}:
        changed = plane.copy()
        changed[place, place] += 0.5
        after = backend.run("restore", {"image": changed[None, None], **more})["restored"][0, 0]
        felt = np.argwhere(before != after) // scale
        farthest = max(farthest, int(np.abs(felt - place).max()))
    return farthest


def main() -> int:
    """Prints the table; exit status 1 where a stored value differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=SHIPPED_BUNDLES)
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    planes = {"retina 700 x 900": retina(700, 900), "CT 640 x 384": computed_tomography()}
    print("| bundle | image | tile | largest difference | 16-bit values that differ |\n| --- | --- | --- | --- | --- |")
    worst, reaches = 0, []
    for folder in list_bundles(options.repository):
        bundle = read_bundle(folder)
        backend = load(options.backend, bundle, "cpu", "fp32", options.threads)
        reaches.append(
            f"{bundle.reference} sees {reach(backend, bundle)} pixels far, its halo is {bundle.manifest.halo}"
        )
        for name, plane in planes.items():
            more = inputs_for(backend, bundle, plane)
            for tile in bundle.manifest.tiles:
                try:
                    found = difference(backend, bundle, plane, tile, more)
                except (
                    ValueError
                ):  # the service would not take this shape either: no room between halos, or it ends past the whole
                    print(f"| {bundle.reference} | {name} | {tile[0]} | cannot be used | |")
                    continue
                worst = max(worst, found.stored)
                told = f"{found.largest:.2g} | {found.stored} of {found.values} |"
                print(f"| {bundle.reference} | {name} | {tile[0]} | {told}", flush=True)
    print("\n" + "\n".join(reaches))
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
