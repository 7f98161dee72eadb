"""Hashes of what lies around each pixel of an image, equal to the last bit in every runtime.

Hashing is not continuous, so two runtimes that round differently sort differently; and features that
went through a layer are never rounded alike. The image is: it is what a graph is given. Here it is put
on a fixed grid, and everything that follows is arithmetic on whole numbers below 2^53, which float64
holds exactly, in whatever order it is summed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.nonlocal_sparse import sort_by_bucket

SIDE = 5  # of a patch
GRID = 2.0**20  # steps per unit: a sixteenth of a 16-bit step; exact up to images of 10^6


class PatchHash(nn.Module):
    """Orders the pixels of image (B, C, H, W) by random projections of 5x5 patches: positions (B, hashes, H W).

    Each projection's weights are the numbers -12 ... 12 in an order drawn once from the seed: their sum
    is zero, so the pedestal does not count, and nor does the gain beyond the grid's rounding.
    """

    weight: Tensor

    def __init__(self, hashes: int = 4, buckets: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.hashes = hashes
        generator = torch.Generator(device="cpu").manual_seed(seed)
        drawn = torch.rand(hashes * (buckets // 2), SIDE**2, generator=generator, device="cpu").argsort(dim=1)
        weight = (drawn - SIDE**2 // 2).float().T.contiguous()
        self.register_buffer("weight", weight.to(torch.get_default_device()))

    def forward(self, image: Tensor) -> Tensor:
        rows, columns, margin = image.shape[-2], image.shape[-1], SIDE // 2
        whole = torch.round(image.detach().double() * GRID).sum(dim=1)
        padded = F.pad(whole, (margin, margin, margin, margin), mode="replicate")
        across = torch.stack([padded[:, :, c : c + columns] for c in range(SIDE)], dim=-1)
        patches = torch.stack([across[:, r : r + rows] for r in range(SIDE)], dim=-2)  # (B, H, W, 5, 5)
        return sort_by_bucket(patches.flatten(3).flatten(1, 2) @ self.weight.double(), self.hashes)
