"""Training patches of noisy images, taken from every stride-th pixel so that their noise is white.

Pixel-shuffle downsampling (Zhou et al., 2020; Lee et al., AP-BSN, 2022) with one phase per sample: a
batch may mix images of different strides. Sample n depends on (seed, n // batch, n % batch) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.data.noise import Plane
from training.seeds import sample_generator


@dataclass(frozen=True)
class NoisyFile:
    """One noisy plane to learn from, float32 (H, W) as .npy, and its stride."""

    path: Path
    stride: int


@dataclass(eq=False)
class SubImages(Dataset[dict[str, Tensor]]):
    """Samples {image (1, side, side), valid (1, side, side) of 0 and 1, index () of the file}.

    A sub-image smaller than `side` is filled up with zeros, which is what the network sees at any
    border; its own pixels are valid. It is never mirrored: a mirrored pixel would show its noise twice.
    """

    files: list[NoisyFile]
    side: int
    seed: int
    batch: int
    steps: int

    def __len__(self) -> int:
        return self.batch * self.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = sample_generator(self.seed, number // self.batch, number % self.batch)
        index = int(rng.integers(len(self.files)))
        file = self.files[index]
        phase = draw_phase(np.load(file.path, mmap_mode="r"), file.stride, rng)
        patch = oriented(cut(phase, self.side, rng), rng)
        image = np.zeros((1, self.side, self.side), dtype=np.float32)
        valid = np.zeros_like(image)
        image[0, : patch.shape[0], : patch.shape[1]] = patch
        valid[0, : patch.shape[0], : patch.shape[1]] = 1
        return {"image": torch.from_numpy(image), "valid": torch.from_numpy(valid), "index": torch.tensor(index)}


def draw_phase(plane: Plane, stride: int, rng: np.random.Generator) -> Plane:
    """One of the stride x stride sub-images of a plane (H, W); a small plane has fewer."""
    row, column = (int(rng.integers(min(stride, length))) for length in plane.shape)
    return plane[row::stride, column::stride]


def cut(plane: Plane, side: int, rng: np.random.Generator) -> Plane:
    """A part of a plane, at most side x side."""
    top, left = (int(rng.integers(max(0, length - side) + 1)) for length in plane.shape)
    return plane[top : top + side, left : left + side]


def oriented(patch: Plane, rng: np.random.Generator) -> Plane:
    """A patch in one of its eight orientations."""
    turned = np.rot90(patch, int(rng.integers(4)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned
