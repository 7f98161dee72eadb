"""Every registered network: sizes, gradients, determinism, batches, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.networks.registry import NETWORKS, build_network
from tests.small_network import BLIND, DENOISERS, SCALES, SMALL, graph, image, outputs, randomised, small
from training.export import BATCHES, SHAPES, export_onnx, export_torchscript, parity, run_onnx, run_torchscript

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "blimsr x4": ("blimsr", {"scale": 4}),
    "cnn-est": ("cnn-est", {"channels": 32}),
    "dbsn": ("dbsn", {}),
    "dbsn-light": ("dbsn-light", {"channels": 128}),
    "dran": ("dran", {}),
    "nlsa-upscaler x4": ("nlsa-upscaler", {"scale": 4}),
    "ss-bsn": ("ss-bsn", {"channels": 128}),
    "ssformer": ("ssformer", {"size": "quality"}),
    "ssformer hash": ("ssformer", {"size": "base", "sparse": "hash", "balanced": True}),
    "ssformer-upscaler x4": ("ssformer-upscaler", {"scale": 4, "size": "quality"}),
    "swinir-light x2": ("swinir-light", {"scale": 2}),
}


def test_every_network_is_tested() -> None:
    assert {name for name, _ in SMALL.values()} == set(NETWORKS)


def test_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match="no network 'unet'; known: blimsr, cnn-est, dbsn"):
        build_network("unet", {})


@pytest.mark.parametrize("label", sorted(SMALL))
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 8), (37, 61)])
def test_any_size_is_kept(label: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        found = outputs(small(label), label, image(*size, batch=2))
    for each in found:
        assert torch.isfinite(each).all()
        if label in (*BLIND, *DENOISERS, *SCALES):
            assert each.shape == (2, 1, *(side * SCALES.get(label, 1) for side in size))
        else:
            assert each.shape == (2, 7)


@pytest.mark.parametrize("label", sorted(SMALL))
def test_every_parameter_gets_a_gradient(label: str) -> None:
    network = small(label).train()
    sum(each.square().sum() for each in outputs(network, label, image())).backward()  # type: ignore[union-attr]
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("label", sorted(SMALL))
def test_same_input_same_bits_whatever_came_between(label: str) -> None:
    network, y = small(label), image(37, 61)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        first = outputs(network, label, y)
        outputs(network, label, image(1, 8))
        torch.manual_seed(123)
        again = outputs(network, label, y)
        rebuilt = outputs(small(label), label, y)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, rebuilt, strict=True))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("label", sorted(SMALL))
def test_batch_members_do_not_meet(label: str) -> None:
    network, y = small(label), image(40, 31, batch=3)
    y = y * torch.tensor([1.0, 0.5, 2.0])[:, None, None, None]
    with torch.no_grad():
        together = outputs(network, label, y)
        alone = [outputs(network, label, y[i : i + 1]) for i in range(3)]
    for index, each in enumerate(together):
        torch.testing.assert_close(each, torch.cat([one[index] for one in alone]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("label", sorted(SMALL))
def test_export_equals_eager(label: str, tmp_path) -> None:
    exported = graph(label)
    export_onnx(exported, tmp_path / "graph.onnx")
    assert parity(exported, "onnx", tmp_path / "graph.onnx") <= 1e-4
    export_torchscript(exported, tmp_path / "graph.ts")
    assert parity(exported, "torchscript", tmp_path / "graph.ts") <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("label", sorted(PUBLISHED))
def test_published_size_learns_and_exports(label: str, tmp_path) -> None:
    torch.manual_seed(0)
    network = randomised(build_network(*PUBLISHED[label])).train()
    sum(each.square().sum() for each in outputs(network, label, image(24, 32))).backward()  # type: ignore[union-attr]
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    exported = graph(label, network.eval())
    example = exported.example(2, 33, 24)
    expected = exported.eager(example)
    for write, run in ((export_onnx, run_onnx), (export_torchscript, run_torchscript)):
        write(exported, tmp_path / "graph")
        found = run(tmp_path / "graph", exported, example)
        for name in exported.outputs:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=0)


def test_parity_covers_what_it_promises() -> None:
    assert len(SHAPES) == 4
    assert BATCHES == (1, 3, 8)
