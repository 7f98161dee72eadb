"""Unpaired crops of high- and low-resolution planes, and what each draw of the degradation depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor
from torch.utils.data import Dataset

from training.degradation.generator import Latents
from training.degradation.learned import draw_latents
from training.degradation.measure import draw_crop
from training.seeds import sample_generator

STREAM = 90_000_000  # added to a run's seed


@dataclass(eq=False)
class UnpairedCrops(Dataset[dict[str, Tensor]]):
    """Sample n depends on (seed, n) alone. Crops keep their orientation: a scanner's blur has one.

    Planes are .npy files, float32 (H, W) on the unit scale, opened for each sample. `laws` (N, 2) are (a, b) of the
    low-resolution images' noise from the least noisy to the noisiest; which one a draw imitates is its level latent.
    """

    high: Sequence[Path]
    low: Sequence[Path]
    laws: NDArray[np.float64]
    scale: int
    crop: int  # of a low-resolution image
    seed: int
    batch: int
    steps: int

    def __len__(self) -> int:
        return self.batch * self.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = sample_generator(self.seed + STREAM, number // self.batch, number % self.batch)
        high, low = (
            draw_crop([np.load(paths[int(rng.integers(len(paths)))], mmap_mode="r", allow_pickle=False)], side, rng)
            for paths, side in ((self.high, self.crop * self.scale), (self.low, self.crop))
        )
        latents = draw_latents(1, low.shape, rng)
        rank = rng.uniform(1e-3, 1 - 1e-3)
        law = self.laws[int(rank * len(self.laws))].astype(np.float32)
        return {
            "high": torch.from_numpy(high)[None],
            "low": torch.from_numpy(low)[None],
            "kernel": latents.kernel[0],
            "noise": latents.noise[0],
            "level": torch.tensor([ndtri(rank)], dtype=torch.float32),
            "law": torch.from_numpy(law),
        }


def latents_of(batch: dict[str, Tensor]) -> Latents:
    """The latents of a batch of samples."""
    return Latents(batch["kernel"], batch["noise"], batch["level"])


def large_enough(paths: Sequence[Path], side: int) -> list[Path]:
    """The planes of `side` rows and columns at least. Raises ValueError where there is none."""
    kept = [path for path in paths if min(np.load(path, mmap_mode="r", allow_pickle=False).shape) >= side]
    if not kept:
        raise ValueError(f"degradation: none of {len(paths)} images has {side} x {side} pixels, which a crop needs")
    return kept
