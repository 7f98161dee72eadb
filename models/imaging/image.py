"""The decoded image that every part of the product passes around."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Limits:
    """What is read at most; all are checked from headers, before pixels are decoded."""

    bytes: int = 256 * 1024**2
    pixels: int = 100_000_000  # rows x columns x frames
    frames: int = 1000


@dataclass(frozen=True)
class ValueMap:
    """Fixed affine map from stored values to the networks' unit scale, and to real-world units.

    unit = stored * scale + offset; real = stored * slope + intercept. Both are invertible (`scale`
    and `slope` are never 0; `scale` is negative where the stored sense is inverted, MONOCHROME1).
    """

    scale: float
    offset: float
    slope: float = 1.0
    intercept: float = 0.0
    unit: str = "grey level"  # name of the real-world unit: "HU", "grey level", "float value", ...

    @property
    def real_per_unit(self) -> float:
        """Real-world units (positive) in one step of the networks' scale: converts sigma."""
        return abs(self.slope / self.scale)


@dataclass(frozen=True)
class Image:
    """Stored pixels with what is needed to restore them and to write them back.

    `pixels` is (frames, rows, columns, samples) in the stored dtype (uint8, int8, uint16, int16,
    float32, float64), samples 1 or 3. `padding` is (frames, rows, columns) bool, true where a pixel
    is no measurement and must come back untouched. `source` belongs to the codec of `format`.
    """

    pixels: np.ndarray[Any, Any]
    values: ValueMap
    format: str  # "png", "tiff", "jpeg", "npy" or "dicom"
    minimum: float  # smallest and largest stored value that may be written back
    maximum: float
    spacing_mm: tuple[float, float] | None = None  # between rows, between columns
    padding: np.ndarray[Any, Any] | None = None
    lossy: bool = False  # went through lossy compression before it came here
    source: Any = field(default=None, repr=False)

    @property
    def frames(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def samples(self) -> int:
        return int(self.pixels.shape[3])

    @property
    def bits(self) -> int:
        """Bits of one stored sample (8, 16, 32 or 64)."""
        return int(self.pixels.dtype.itemsize * 8)

    def with_pixels(
        self, pixels: np.ndarray[Any, Any], scale: int = 1, padding: np.ndarray[Any, Any] | None = None
    ) -> Image:
        """The same image with new pixels, `scale` times as many rows and columns."""
        spacing = self.spacing_mm and (self.spacing_mm[0] / scale, self.spacing_mm[1] / scale)
        return replace(self, pixels=pixels, spacing_mm=spacing, padding=padding)


def frame_of(image: Image, index: int) -> Image:
    """One frame as an image of its own, without `padding` where it has none; nothing is copied."""
    padding = None if image.padding is None else image.padding[index : index + 1]
    if padding is not None and not padding.any():
        padding = None
    return replace(image, pixels=image.pixels[index : index + 1], padding=padding)


@dataclass(frozen=True)
class Derivation:
    """What was done to an image: written into a derived DICOM object, hashed into its UIDs."""

    operation: str  # "denoise" or "superresolve"
    scale: int  # 1, 2 or 4
    model: str  # bundle name
    version: str
    digest: str  # of the bundle, hexadecimal SHA-256
    backend: str
    precision: str
    options: dict[str, Any]  # strength, sigma, min_consistency: what an object depends on
    evidence: dict[str, Any] = field(default_factory=dict)  # noise before and after; not in UIDs
    adversarial: bool = False  # of the model: it may have invented texture; the digest tells it to UIDs
    tiles: str = ""  # the tile plan, where it changes pixels; empty where any plan gives the same
