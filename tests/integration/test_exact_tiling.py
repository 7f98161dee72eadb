"""Tiles of the shipped bundles add up to the whole, bit for bit, and no pixel is felt further away than the halo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.backends.base import load
from app.settings import SHIPPED_BUNDLES
from models.bundle import list_bundles, read_bundle
from tests.benchmarks.tiling import difference, inputs_for, reach, retina

FOLDERS = list_bundles(SHIPPED_BUNDLES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}@{f.name}")
def test_tiles_of_a_shipped_bundle_add_up_to_the_whole(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.manifest.exact_tiling
    assert bundle.manifest.seam == 0
    assert all(0 < bytes_ < 2048 for bytes_ in bundle.manifest.bytes_per_pixel.values())
    backend = load("onnx", bundle, "cpu", "fp32", 1)
    plane = np.ascontiguousarray(retina(300, 264))
    room = 2 * bundle.manifest.halo + bundle.manifest.multiple
    tile = next(tile for tile in bundle.manifest.tiles if min(tile) >= room)  # smaller ones only hold frames whole
    found = difference(backend, bundle, plane, tile, inputs_for(backend, bundle, plane))
    assert (found.largest, found.stored) == (0, 0)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}@{f.name}")
def test_no_pixel_is_felt_further_than_the_halo(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert reach(load("onnx", bundle, "cpu", "fp32", 1), bundle, 128) <= bundle.manifest.halo
