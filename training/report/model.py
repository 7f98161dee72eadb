"""The trained denoiser of a run, as the tables of `training.evaluation` ask for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from training.config import recorded_config
from training.data.noise import NoiseLaw, Plane
from training.export import load_graphs
from training.train import RUN


class RunModel:
    """Runs the two trained graphs of a run folder on whole planes, on the GPU where there is one."""

    def __init__(self, run: Path) -> None:
        record = json.loads((run / RUN).read_text(encoding="utf-8"))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        graphs = load_graphs(run, recorded_config(record))
        self.modules = {graph.name: graph.module.to(self.device).eval() for graph in graphs}

    def tensor(self, array: Plane) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)

    def estimate(self, plane: Plane) -> Plane:
        """The noise parameters (7,) of a plane (H, W)."""
        with torch.no_grad():
            found: Plane = self.modules["estimate"](self.tensor(plane)[None, None])[0].cpu().numpy()
        return found

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        """The plane (H, W) restored, from the estimate or, with `law`, told the true noise."""
        del eight_bit  # nothing is encoded on the way
        parameters = self.estimate(plane) if law is None else law.parameters
        image, strength = self.tensor(plane)[None, None], torch.ones(1, device=self.device)
        with torch.no_grad():
            restored: Plane = (
                self.modules["restore"](image, self.tensor(parameters)[None], strength)[0][0, 0].cpu().numpy()
            )
        return restored

    def noise_level(self, plane: Plane) -> float:
        """Estimated root mean square of the noise of a plane, unit scale."""
        slope, offset, floor = (float(value) for value in self.estimate(plane)[:3])
        return float(np.sqrt(np.maximum(slope * plane + offset, floor).clip(0).mean()))
