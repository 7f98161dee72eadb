"""Hashes of patches: whole numbers, so that no runtime can sort them otherwise."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from models.networks.patch_hash import GRID, SIDE, PatchHash
from tests.small_network import image


def test_weights_are_drawn_once_from_their_seed() -> None:
    torch.manual_seed(1)
    first = PatchHash()
    torch.manual_seed(2)
    assert torch.equal(first.weight, PatchHash().weight)
    assert not torch.equal(first.weight, PatchHash(seed=1).weight)
    assert torch.equal(first.weight.sort(dim=0).values, torch.arange(-12.0, 13)[:, None].expand(-1, 256))


def test_order_is_that_of_whole_numbers() -> None:
    """The same with Python's integers, which do not round."""
    module, y = PatchHash(hashes=2, buckets=16), image(9, 11)
    padded = np.pad(np.rint(y[0, 0].double().numpy() * GRID).astype(int).astype(object), SIDE // 2, mode="edge")
    weight = module.weight.numpy().astype(int).astype(object)
    patches = np.stack([padded[r : r + 9, c : c + 11].ravel() for r in range(SIDE) for c in range(SIDE)], axis=1)
    rotated = (patches @ weight).reshape(99, 2, 8)
    bucket = np.concatenate([rotated, -rotated], axis=2).argmax(axis=2).T
    expected = np.argsort(bucket, axis=1, kind="stable")
    np.testing.assert_array_equal(module(y)[0].numpy(), expected)


def test_pedestal_and_gain_do_not_matter() -> None:
    y = torch.round(image(21, 17) * 4096) / 4096
    module = PatchHash(hashes=2, buckets=32)
    assert torch.equal(module(y), module(8 * y + 0.5))


def test_reduced_precision_sorts_alike() -> None:
    y = image(21, 17).bfloat16()
    expected = PatchHash()(y.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(PatchHash()(y.float()), expected)
    assert torch.equal(PatchHash().bfloat16()(y), expected)


def test_flat_ground_keeps_its_order() -> None:
    """Where all projections are equal, the first bucket is taken everywhere: no noise of rounding decides."""
    order = PatchHash(hashes=3)(torch.full((2, 1, 6, 7), 0.1))
    assert torch.equal(order, torch.arange(42).expand(2, 3, 42))


def test_similar_patches_come_together() -> None:
    """Stripes along and across in turn, 8 pixels wide: in the order a pixel's neighbours are of its own kind."""
    torch.manual_seed(0)
    place = torch.arange(64)
    kinds = (place // 8 % 2).expand(64, 64)
    stripes = (place % 2).float().expand(64, 64)
    y = torch.where(kinds == 1, stripes, stripes.T)[None, None] + 0.01 * torch.randn(1, 1, 64, 64)
    order = PatchHash(hashes=1, buckets=16)(y)[0, 0]
    order = order[(order % 8 >= 2) & (order % 8 < 6)]  # whose patches are of one kind
    kind = kinds.flatten()[order]
    assert (kind[1:] == kind[:-1]).float().mean() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (61, 95)])
def test_another_runtime_sorts_alike(size: tuple[int, int], tmp_path: Path) -> None:
    module, path = PatchHash(), str(tmp_path / "hash.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"image": {0: "batch", 2: "rows", 3: "columns"}}
        torch.onnx.export(
            module, (image(64, 80),), path, input_names=["image"], dynamic_axes=axes, opset_version=18, dynamo=False
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for y in (image(*size, batch=3), torch.full((2, 1, *size), 0.1), (image(*size) > 0.4).float()):
        (found,) = session.run(None, {"image": y.numpy()})
        np.testing.assert_array_equal(found, module(y).numpy())
