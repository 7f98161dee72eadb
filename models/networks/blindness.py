"""Proof by gradient that a network does not see the pixel it predicts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Pixel = tuple[int, int]


def lattices(rows: int, columns: int, spacing: int) -> Iterable[Tensor]:
    """Masks (1, rows, columns), float64, that hold every pixel once; pixels of one are `spacing` apart or more."""
    for first_row in range(min(spacing, rows)):
        for first_column in range(min(spacing, columns)):
            mask = torch.zeros(1, rows, columns, dtype=torch.float64)
            mask[:, first_row::spacing, first_column::spacing] = 1
            yield mask


def single_pixels(rows: int, columns: int, pixels: Sequence[Pixel]) -> Iterable[Tensor]:
    """Masks (1, rows, columns), float64, of one pixel each."""
    for row, column in pixels:
        mask = torch.zeros(1, rows, columns, dtype=torch.float64)
        mask[:, row, column] = 1
        yield mask


def own_derivatives(
    network: nn.Module, image: Tensor, pixels: Sequence[Pixel] | None = None, batch: int = 32
) -> tuple[float, float]:
    """Largest |d out[i] / d image[i]| over `pixels` i, and the largest |d out[i] / d image[j]| of other j met.

    network: a `BlindSpotNetwork`, image (1, C, H, W) -> (mean, model_variance); their sum is
    differentiated, in float64, on the CPU, with the weights as they are. The first figure is exactly
    0.0 for a blind-spot network; the second is not, or the network does not look at the image at all.
    `pixels` (row, column): all of them by default. One backward pass for each, except that pixels
    further apart than the network's radius share one: should the radius be wrong, they would see
    each other, and the first figure could only grow.
    """
    rows, columns = image.shape[-2:]
    radius = getattr(network, "radius", None)
    spacing = max(rows, columns) if radius is None else int(radius) + 1
    chosen = lattices(rows, columns, spacing) if pixels is None else single_pixels(rows, columns, pixels)
    masks = list(chosen)
    network = copy.deepcopy(network).double().cpu().eval()
    own = other = 0.0
    for start in range(0, len(masks), batch):
        mask = torch.stack(masks[start : start + batch])
        copies = image.double().cpu().repeat(len(mask), 1, 1, 1).requires_grad_()
        mean, model_variance = network(copies)
        (gradient,) = torch.autograd.grad(((mean + model_variance) * mask).sum(), copies)
        own = max(own, float((gradient * mask).abs().max()))
        other = max(other, float((gradient * (1 - mask)).abs().max()))
    return own, other
