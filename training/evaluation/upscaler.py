"""Super-resolvers as functions of planes, and those that lie in folders of training runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.networks.registry import build_network
from training.data.noise import NoiseLaw, Plane
from training.train import RUN, WEIGHTS

Upscale = Callable[[Plane], Plane]  # (H, W) -> (scale * H, scale * W), unit scale


def enlarge(low: Plane, upscale: Upscale, scale: int) -> Plane:
    """What `upscale` makes of low (H, W): (scale * H, scale * W). Raises ValueError where it is of another scale."""
    large = upscale(low)
    if large.shape != (expected := (scale * low.shape[0], scale * low.shape[1])):
        raise ValueError(f"a model answered {large.shape}, not {expected}: it is not for x{scale}")
    return large


@torch.no_grad()
def run_network(network: nn.Module, plane: Plane) -> Plane:
    """What a network, in evaluation mode and on its own device, makes of a whole plane (H, W)."""
    image = torch.from_numpy(np.ascontiguousarray(plane, dtype=np.float32)).to(next(network.parameters()).device)
    large: Plane = network(image[None, None])[0, 0].cpu().numpy()
    return large


class RunUpscaler:
    """The network of a run's folder (`run.json`, `restore/`), on the GPU where there is one."""

    def __init__(self, run: Path) -> None:
        restore = json.loads((run / RUN).read_text(encoding="utf-8"))["config"]["restore"]
        self.network = build_network(restore["network"], restore["options"])
        state = torch.load(run / "restore" / WEIGHTS, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state)
        self.network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        """A plane (H, W) as (scale * H, scale * W), unit scale."""
        del eight_bit, law  # nothing is encoded on the way, and nothing told of the noise
        return run_network(self.network, plane)

    def noise_level(self, plane: Plane) -> float:
        """Raises ValueError: a super-resolver estimates no noise."""
        raise ValueError("a super-resolver estimates no noise level")
