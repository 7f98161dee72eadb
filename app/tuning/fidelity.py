"""What a reduced precision costs in quality: PSNR lost against exact mode, and stored values moved."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.backends.base import Backend
from app.options import Options
from app.pipeline import restore
from app.runner import LocalRunner
from app.settings import SHIPPED_BUNDLES
from models.bundle import Bundle
from models.imaging.codec import decode
from models.imaging.dicom.sample import read_samples
from models.imaging.image import Image
from models.imaging.raster import RasterSource, make_image

Array = np.ndarray[Any, Any]

SIGMAS = (5 / 255, 15 / 255, 50 / 255)  # of the added noise, on the unit scale
MARGIN = 0.1  # of the 16-bit range, left free above and below a clean image


@dataclass(frozen=True)
class Loss:
    """Fast against exact mode over several images."""

    mean_db: float  # PSNR of exact mode less that of fast mode, positive where fast is worse
    worst_db: float
    largest: int  # largest difference of a stored 16-bit value
    typical: float  # root mean square of that difference
    images: int


def packaged() -> list[Array]:
    """Clean planes (rows, columns) within the unit scale, of images that every installation has."""
    files = [*read_samples(), (SHIPPED_BUNDLES / "example.png").read_bytes()]
    return [scaled(decode(file).pixels[0, ..., 0].astype(np.float64)) for file in files]


def scaled(plane: Array) -> Array:
    """A plane of any range on the unit scale, with room for noise on both sides."""
    low, high = plane.min(), plane.max()
    return np.asarray(MARGIN + (1 - 2 * MARGIN) * (plane - low) / max(high - low, 1e-9))


def loss(bundle: Bundle, exact: Backend, fast: Backend, planes: Sequence[Array]) -> Loss:
    """Restores each plane, spoilt as the bundle's task asks, in both modes through the whole pipeline."""
    losses, squares, largest = [], [], 0
    for clean, image in _cases(planes, bundle.manifest.scale):
        truth, (slow, quick) = clean * 65535, (_restored(image, bundle, backend) for backend in (exact, fast))
        losses.append(_psnr(slow, truth) - _psnr(quick, truth))
        squares.append(float(np.mean(np.square(slow - quick))))
        largest = max(largest, int(np.abs(slow - quick).max()))
    return Loss(float(np.mean(losses)), max(losses), largest, math.sqrt(float(np.mean(squares))), len(losses))


def _cases(planes: Sequence[Array], scale: int) -> list[tuple[Array, Image]]:
    """Clean planes with a 16-bit image to restore: noisy at each of `SIGMAS`, or smaller by `scale`."""
    if scale > 1:
        trimmed = [plane[: len(plane) // scale * scale, : plane.shape[1] // scale * scale] for plane in planes]
        return [(plane, _stored(_shrunk(plane, scale))) for plane in trimmed]
    rng = np.random.default_rng(0)
    return [(plane, _stored(plane + rng.normal(0, sigma, plane.shape))) for plane in planes for sigma in SIGMAS]


def _shrunk(plane: Array, scale: int) -> Array:
    rows, columns = plane.shape
    return np.asarray(plane.reshape(rows // scale, scale, columns // scale, scale).mean((1, 3)))


def _stored(plane: Array) -> Image:
    pixels = np.rint(np.clip(plane, 0, 1) * 65535).astype(np.uint16)
    return make_image(pixels[None, ..., None], "png", RasterSource())


def _restored(image: Image, bundle: Bundle, backend: Backend) -> Array:
    result = asyncio.run(restore(image, bundle, Options(), LocalRunner(backend)))
    return result.image.pixels[0, ..., 0].astype(np.float64)


def _psnr(values: Array, truth: Array) -> float:
    return 10 * math.log10(65535**2 / float(np.mean(np.square(values - truth))))
