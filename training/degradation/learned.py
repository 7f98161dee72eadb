"""A learned degradation on disk and in use: weights, and facts about them with their checksum."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.noise import Plane
from training.degradation.generator import KERNEL_LATENTS, NOISE_LATENTS, DegradationGenerator, Latents

VERSION = 1
WEIGHTS, FACTS = "degradation.pt", "degradation.json"


@dataclass(frozen=True, eq=False)
class LearnedDegradation:
    """Draws of a trained generator (evaluation mode, CPU, float32)."""

    generator: DegradationGenerator
    facts: dict[str, Any] = field(default_factory=dict)  # what was measured of its draws, for people

    @property
    def scale(self) -> int:
        return self.generator.scale

    @torch.no_grad()
    def degrade(self, high: Plane, rng: np.random.Generator) -> Plane:
        """high (sH, sW), unit scale, as low (H, W), not clipped."""
        latents = draw_latents(1, (high.shape[0] // self.scale, high.shape[1] // self.scale), rng)
        fake = self.generator(torch.from_numpy(np.ascontiguousarray(high))[None, None], latents)
        low: Plane = fake.low[0, 0].numpy()
        return low


def draw_latents(count: int, shape: tuple[int, int], rng: np.random.Generator) -> Latents:
    """Latents of `count` images of a low-resolution shape (H, W)."""
    shapes = ((count, KERNEL_LATENTS), (count, NOISE_LATENTS, *shape), (count, 1))
    return Latents(*(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes))


def write_learned(folder: Path, learned: LearnedDegradation) -> None:
    """Writes `degradation.pt` and, when that is whole, `degradation.json`; a kill leaves no half file."""
    buffer = io.BytesIO()
    torch.save(learned.generator.state_dict(), buffer)
    record = {
        "version": VERSION,
        "scale": learned.scale,
        "kernel": learned.generator.side,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "facts": learned.facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
    for name, content in ((WEIGHTS, buffer.getvalue()), (FACTS, text.encode())):
        (folder / (name + ".part")).write_bytes(content)
        os.replace(folder / (name + ".part"), folder / name)


def read_learned(folder: Path) -> LearnedDegradation:
    """A degradation as `write_learned` left it. Raises ValueError where it is damaged or of another version."""
    record = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise ValueError(f"{FACTS}: not a learned degradation of version {VERSION}")
    content = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise ValueError(f"{WEIGHTS} is not the file that {FACTS} describes; learn the degradation anew")
    generator = DegradationGenerator(record["scale"], record["kernel"])
    generator.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    return LearnedDegradation(generator.eval(), record["facts"])
