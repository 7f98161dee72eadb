"""A blind-spot network on whole images of any size, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.networks.subsampling import Subsampled, random_masks, replaced

ATTENDED = 32  # pixels of a sub-image


def spans(length: int, tile: int, halo: int) -> Iterator[tuple[slice, slice, slice]]:
    """Along one axis: what a tile reads, what of that it keeps, and where that goes."""
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        first, last = max(0, start - halo), min(length, stop + halo)
        yield slice(first, last), slice(start - first, stop - first), slice(start, stop)


@torch.no_grad()
def predict(network: nn.Module, image: Tensor, stride: int, tile: int) -> tuple[Tensor, Tensor]:
    """(mean, model variance) of image (1, 1, H, W), both (1, 1, H, W), float32.

    Under pixel-shuffle downsampling by `stride`, in tiles of `tile` pixels plus as much border as the
    network sees: the result is that of the whole image at once. Attention has no such limit; its tiles
    are given `ATTENDED` pixels, in which most of what resembles a pixel lies.
    """
    subsampled = Subsampled(network, stride)
    halo = (ATTENDED if network.radius is None else network.radius) * stride  # type: ignore[operator]
    tile = -(-tile // stride) * stride  # tiles that start where a phase does are filled up as the whole image is
    results = torch.empty_like(image), torch.empty_like(image)
    for rows_in, rows_kept, rows_out in spans(image.shape[-2], tile, halo):
        for columns_in, columns_kept, columns_out in spans(image.shape[-1], tile, halo):
            outputs = subsampled(image[..., rows_in, columns_in])
            for result, output in zip(results, outputs, strict=True):
                result[..., rows_out, columns_out] = output[..., rows_kept, columns_kept]
    return results


@torch.no_grad()
def refine(network: nn.Module, image: Tensor, mean: Tensor, tile: int) -> Tensor:
    """The mean (1, 1, H, W) after AP-BSN's random replacing refinement, with fixed masks."""
    masks = random_masks(image.shape[-2], image.shape[-1])
    return replaced(lambda mixed: predict(network, mixed, 1, tile)[0], image, mean, masks)
