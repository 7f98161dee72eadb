"""Every registered network, and every kind of block that is chosen by option, small enough for a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.networks.blind_spot import BlindSpotNetwork
from models.networks.denoiser import Denoiser, condition_of
from models.networks.registry import build_network
from training.export import Graph, fold

UPSCALERS: dict[str, dict[str, Any]] = {  # each at both scales, as "NAME x2" and "NAME x4"
    "blimsr": {"channels": 8, "groups": 2, "blocks": 1},
    "nlsa-upscaler": {"channels": 16, "blocks": 1, "every": 1, "dual": 1, "hashes": 2, "chunk": 32, "buckets": 16},
    "residual-upscaler": {"channels": 8, "blocks": 2},
    "ssformer-upscaler": {"channels": 16, "groups": 1, "blocks": 2},
    "swinir-light": {"channels": 12, "groups": 1, "blocks": 2, "heads": 2},
}
SCALES = {f"{name} x{scale}": scale for name in UPSCALERS for scale in (2, 4)} | {"ssformer-upscaler halved": 2}
HALVED: dict[str, Any] = {"unshuffle": 2, "balanced": True}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn-est": ("cnn-est", {"channels": 8}),
    "cnn-est affine-std": ("cnn-est", {"channels": 8, "law": "affine-std"}),
    "cnn-est pixelwise": ("cnn-est", {"channels": 8, "law": "pixelwise"}),
    "dbsn": ("dbsn", {"channels": 8, "modules": 1}),
    "dbsn-light": ("dbsn-light", {"channels": 8, "modules": 2}),
    "dran": ("dran", {"channels": 8, "blocks": 3, "depth": 1, "kernels": 3}),
    "noise-level": ("noise-level", {"channels": 16, "depth": 2}),
    "noise-map-unet": ("noise-map-unet", {"channels": [8, 8, 16], "blocks": [1, 1, 1, 1, 1]}),
    "ss-bsn": ("ss-bsn", {"channels": 8, "modules": 2, "attended": 1, "heads": 2, "scale": 8}),
    "ssformer": ("ssformer", {"channels": 16, "groups": 1, "blocks": 2, "unshuffle": 2}),
    "ssformer balanced": ("ssformer", {"channels": 16, "groups": 1, "blocks": 2, "unshuffle": 4, "balanced": True}),
    "ssformer hash": ("ssformer", {"channels": 16, "groups": 1, "blocks": 2, "unshuffle": 4, "sparse": "hash"}),
    "ssformer-upscaler halved": ("ssformer-upscaler", {"scale": 2, "channels": 16, "groups": 1, "blocks": 2} | HALVED),
    **{f"{n} x{scale}": (n, {"scale": scale} | options) for n, options in UPSCALERS.items() for scale in (2, 4)},
}
BLIND = ("dbsn", "dbsn-light", "ss-bsn")
DENOISERS = ("dran", "noise-map-unet", "ssformer", "ssformer balanced", "ssformer hash")


def small(label: str, seed: int = 0) -> nn.Module:
    """The network of that label with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return randomised(build_network(*SMALL[label])).eval()


def randomised(network: nn.Module) -> nn.Module:
    """The same network with random weights where a training would start from zero."""
    for parameter in network.parameters():  # zero-initialised layers would hide what lies before them
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network


def image(rows: int = 48, columns: int = 56, batch: int = 1) -> Tensor:
    """Noise (B, 1, rows, columns) around 0.4; repeatable."""
    generator = torch.Generator().manual_seed(rows * columns)
    return 0.4 + 0.1 * torch.randn(batch, 1, rows, columns, generator=generator)


def law(slope: float, offset: float, floor: float) -> Tensor:
    """Parameters (1, 7) of somewhat coloured noise."""
    return torch.tensor([[slope, offset, floor, 0.5, 0.3, 0.1, -0.1]])


def told(rows: int, columns: int, batch: int = 1) -> Tensor:
    """What a network is told of noise of level 0.1."""
    return condition_of(torch.full((batch, 1, rows, columns), 0.1), law(0.0, 0.01, 0.0).expand(batch, -1))


def outputs(network: nn.Module, label: str, y: Tensor) -> tuple[Tensor, ...]:
    """What the network makes of images (B, 1, H, W)."""
    arguments = (y, told(y.shape[2], y.shape[3], y.shape[0])) if label in DENOISERS else (y,)
    found = network(*arguments)
    return found if isinstance(found, tuple) else (found,)


def graph(label: str, network: nn.Module | None = None) -> Graph:
    """The network of that label as it would be exported; the small one by default."""
    network = small(label) if network is None else network
    if label in DENOISERS:
        return Graph("restore", fold(Denoiser(network)), ("image", "parameters", "strength"), ("restored", "noise"))
    if isinstance(network, BlindSpotNetwork):
        return Graph("preliminary", fold(network), ("image",), ("mean", "model_variance"))
    return Graph("graph", fold(network), ("image",), ("restored",) if label in SCALES else ("parameters",))
