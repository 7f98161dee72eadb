"""Sizes of all networks beside the published ones: `medrestore networks`.

GMACs are multiply-accumulates / 1e9 of one forward pass at 256x256, batch 1; element-wise work is not
counted. Nothing is computed: the networks are built without memory for their weights.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks.balanced import BalancedAttention
from models.networks.blind_spot import BlindSpotNetwork
from models.networks.denoiser import CONDITIONS
from models.networks.nonlocal_sparse import NonLocalSparse
from models.networks.registry import NETWORKS
from models.networks.ssformer_upscaler import SIZES

SIDE = 256
BLOCKS: dict[str, Callable[..., nn.Module]] = {"balanced": BalancedAttention, "nonlocal-sparse": NonLocalSparse}


@dataclass(frozen=True)
class Entry:
    """A network or block of one size, and what was published of it (None: nothing, or another architecture)."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    published_parameters: int | None = None
    published_gmacs: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Size(Entry):
    """An entry with its measured size."""

    parameters: int = 0
    gmacs: float = 0.0


TEMPERATURE = "6 more: the learnt temperatures"
NLSA = "280 fewer: no PReLU that nothing uses, no fixed mean shifts"
PLAIN = "a plain body of this width and depth:"
ENTRIES = (
    Entry("cnn-est", {"channels": 16}, 865, 0.05),
    Entry("cnn-est", {"channels": 32}, 3_265, 0.21),
    Entry("dbsn", {}, 6_612_289, 432.0),
    Entry("dbsn", {"colours": 3}, 6_612_675),
    Entry("dbsn-light", {"channels": 128}, 3_655_745, 239.2),
    Entry("dbsn-light", {"channels": 128, "colours": 3}, 3_656_131, 239.2),
    Entry("dbsn-light", {"channels": 64}, 915_489, 59.8),
    Entry("dbsn-light", {"channels": 32, "modules": 6}, 167_825, 10.9),
    Entry("ss-bsn", {"channels": 128, "colours": 3}, 6_410_947, 720.3, TEMPERATURE),
    Entry("ss-bsn", {"channels": 128}, 6_410_561, 720.3, TEMPERATURE),
    Entry("ss-bsn", {"channels": 64}, 1_604_769, 255.3, TEMPERATURE),
    Entry(
        "dran",
        {},
        2_458_944,
        51.0,
        "published: 3 colours and batch norms; exported, with all kernels convolved, 160 GMAC",
    ),
    Entry("noise-level"),
    Entry("noise-map-unet"),
    Entry("ssformer", {"size": "fast"}, note=f"{PLAIN} 0.53 M, 4.9"),
    Entry("ssformer", {"size": "base"}, note=f"{PLAIN} 2.39 M, 33.9"),
    Entry("ssformer", {"size": "quality"}, note=f"{PLAIN} 2.39 M, 135.4"),
    Entry("ssformer", {"size": "fast", "balanced": True}),
    Entry("ssformer", {"size": "fast", "sparse": "hash"}),
    Entry("residual-upscaler", {"scale": 2}),
    Entry("residual-upscaler", {"scale": 4}),
    *(Entry("ssformer-upscaler", {"scale": scale, "size": size}) for size in SIZES for scale in (2, 4)),
    Entry("nlsa-upscaler", {"scale": 2, "colours": 3, "dual": 0}, 42_394_780, note=NLSA),
    Entry("nlsa-upscaler", {"scale": 2}, note="with the dual attention that was published untrained, and uncounted"),
    Entry("nlsa-upscaler", {"scale": 4}, note="published: none, x4 gave x2"),
    Entry("swinir-light", {"scale": 2, "colours": 3}, 910_152, 68.5),
    Entry("swinir-light", {"scale": 4, "colours": 3}, 929_628, 69.8),
    Entry("swinir-light", {"scale": 2}),
    Entry("swinir-light", {"scale": 4}),
    Entry("blimsr", {"scale": 2}),
    Entry("blimsr", {"scale": 4}, 19_107_073, 1262.0, "published: its attention without padding"),
    Entry("balanced", {"channels": 64}, 565),
    Entry("balanced", {"channels": 256}, 8_257, 0.003),
    Entry("nonlocal-sparse", {"channels": 256}, 213_312, 50.7, "published: half the hash buckets, from 96x96 scaled"),
)


class MeanPath(nn.Module):
    """A blind-spot network without its variance head: what the publications count."""

    def __init__(self, network: BlindSpotNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        mean: Tensor = self.network.tail(self.network.features(image))
        return mean


def inputs_of(entry: Entry, network: nn.Module) -> list[Tensor]:
    """Inputs without values: image or features, and the condition where the network takes one."""
    channels = entry.options["channels"] if entry.name in BLOCKS else entry.options.get("colours", 1)
    inputs = [torch.empty(1, channels, SIDE, SIDE, device="meta")]
    if "condition" in inspect.signature(network.forward).parameters:
        inputs.append(torch.empty(1, CONDITIONS, SIDE, SIDE, device="meta"))
    return inputs


def measure(entry: Entry) -> Size:
    """Counts the parameters and the multiply-accumulates of one entry."""
    with torch.device("meta"):
        network = (NETWORKS | BLOCKS)[entry.name](**entry.options).eval()
    parameters = sum(p.numel() for p in network.parameters())
    if isinstance(network, BlindSpotNetwork):
        parameters, network = network.mean_parameters(), MeanPath(network)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs_of(entry, network))
    return Size(**asdict(entry), parameters=parameters, gmacs=counter.get_total_flops() / 2e9)


def markdown(sizes: list[Size]) -> str:
    """The table for people."""
    lines = [
        f"| network | options | parameters | published | GMAC at {SIDE}x{SIDE} | published | note |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for size in sizes:
        options = ", ".join(f"{key} {value}" for key, value in size.options.items())
        known = f"{size.published_parameters:,}" if size.published_parameters else ""
        cost = f"{size.published_gmacs:.4g}" if size.published_gmacs else ""
        row = (size.name, options, f"{size.parameters:,}", known, f"{size.gmacs:.4g}", cost, size.note)
        lines.append("| " + " | ".join(row) + " |")
    lines.append("\nBlind-spot networks are counted without their variance head, as they were published.")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore networks`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="medrestore networks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a Markdown table")
    options = parser.parse_args(argv)
    sizes = [measure(entry) for entry in ENTRIES]
    print(json.dumps([asdict(size) for size in sizes], indent=2) if options.json else markdown(sizes))
    return 0
