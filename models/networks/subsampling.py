"""Pixel-shuffle downsampling, which makes correlated noise look white, and the refinement after it.

Every stride-th pixel makes a small image (Zhou et al., 2020; Lee et al., AP-BSN, 2022). The phases
go into the batch, not side by side into one mosaic, so none sees another. The refinement (R3) of
AP-BSN is drawn from fixed masks here: two calls agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fold(image: Tensor, stride: int) -> Tensor:
    """image (B, C, H, W) -> phases (B s^2, C, ceil(H / s), ceil(W / s)); zeros below and to the right."""
    if stride == 1:
        return image
    batch, channels, rows, columns = image.shape
    padded = F.pad(image, (0, (stride - columns % stride) % stride, 0, (stride - rows % stride) % stride))
    down, across = padded.shape[-2] // stride, padded.shape[-1] // stride
    cells = padded.reshape(batch, channels, down, stride, across, stride)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(batch * stride**2, channels, down, across)


def unfold(phases: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    """The inverse of `fold`: phases (B s^2, C, h, w) -> image (B, C, rows, columns), padding cut off."""
    if stride == 1:
        return phases[..., :rows, :columns]
    count, channels, down, across = phases.shape
    cells = phases.reshape(count // stride**2, stride, stride, channels, down, across)
    image = cells.permute(0, 3, 4, 1, 5, 2).reshape(count // stride**2, channels, down * stride, across * stride)
    return image[..., :rows, :columns]


class Subsampled(nn.Module):
    """A network applied to each phase on its own; image (B, C, H, W) -> the network's outputs, same size."""

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network = network
        self.stride = stride

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        rows, columns = image.shape[-2], image.shape[-1]
        return tuple(unfold(x, self.stride, rows, columns) for x in self.network(fold(image, self.stride)))


def random_masks(rows: int, columns: int, count: int = 8, share: float = 0.16, seed: int = 0) -> Tensor:
    """`count` fixed masks (count, 1, rows, columns) of bool, each true at about `share` of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, rows, columns, generator=generator) < share


def lattice_masks(rows: int, columns: int) -> Tensor:
    """Six masks (6, 1, rows, columns) of bool, the places of a 2x3 lattice: together they hold each pixel once."""
    place = 3 * (torch.arange(rows)[:, None] % 2) + torch.arange(columns)[None, :] % 3
    return place == torch.arange(6)[:, None, None, None]


def replaced(denoise: Callable[[Tensor], Tensor], image: Tensor, preliminary: Tensor, masks: Tensor) -> Tensor:
    """Refines a preliminary result: the mean of denoise(preliminary with the mask's pixels of the image).

    image, preliminary and the result (B, C, H, W); masks (K, 1, H, W) of bool, `random_masks` or
    `lattice_masks`. `denoise` maps an image to an image, which may be larger below and to the right.
    (Random replacing refinement, AP-BSN 2022: K = 8, share 0.16.)
    """
    rows, columns = image.shape[-2], image.shape[-1]
    passes = [denoise(torch.where(mask, image, preliminary))[..., :rows, :columns] for mask in masks.to(image.device)]
    return torch.stack(passes).mean(dim=0)
