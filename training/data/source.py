"""Folders of training images, in memory: where crops are cut from.

Reads PNG, TIFF, JPEG and NPY through `models.imaging`, as the service does. Images are held in
their stored type and turned into floats crop by crop.
"""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.imaging.codec import decode
from training.data.noise import Plane

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
SUFFIXES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".npy"}


@dataclass(frozen=True)
class SourceConfig:
    """One set of images and how to read it."""

    name: str
    folder: str  # below the data folder
    include: str = "*"  # file names, as a glob
    exclude: str = ""  # file names left out, as globs separated by spaces: the held-back patients
    weight: float = 1.0  # share of the crops, relative to the other sources
    low: float = 0.0  # stored values that map to 0 and 1 ...
    high: float = 0.0  # ... where 0 means the largest value of the stored type
    percentile: float = 0.0  # or: each image's own percentile maps to 1 (MR, PET: no absolute unit)
    windows: tuple[tuple[float, float], ...] = ()  # or: one of these (low, high) at random, clipped (CT)
    reduce: int = 1  # area reduction that averages the image's own noise away
    reduce_share: float = 1.0  # share of the crops taken from the reduced image

    def __post_init__(self) -> None:
        if self.reduce < 1 or not 0 <= self.reduce_share <= 1 or self.weight < 0:
            raise ValueError(f"source {self.name}: reduce >= 1, 0 <= reduce_share <= 1 and weight >= 0 are needed")


def read_plane(path: Path) -> tuple[NDArray[np.generic], float]:
    """The first frame's luminance (H, W), and the largest value of the stored type.

    Gray pixels keep their stored type, colour becomes float32 on the stored range.
    """
    pixels = decode(path.read_bytes(), hint=path.name).pixels[0]
    full_scale = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else 1.0
    return (pixels[:, :, 0] if pixels.shape[2] == 1 else pixels.astype(np.float32) @ LUMA), full_scale


def area_reduce(plane: Plane, factor: int) -> Plane:
    """Mean over factor x factor blocks of a plane (H, W); a remainder at the edge is left out."""
    rows, columns = (side // factor for side in plane.shape)
    blocks = plane[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


class Source:
    """The images of one `SourceConfig`."""

    def __init__(self, config: SourceConfig, data: Path, paths: list[Path] | None = None) -> None:
        """All images that the configuration names, or only `paths` of them."""
        self.config = config
        self.paths = list_images(data / config.folder, config.include, config.exclude) if paths is None else paths
        if not self.paths:
            raise FileNotFoundError(f"source {config.name}: no image in {config.folder} matches {config.include!r}")
        self.planes = [read_plane(path) for path in self.paths]

    def plane(self, index: int, rng: np.random.Generator) -> Plane:
        """Image `index` on the unit scale, float32 (H, W), possibly windowed or reduced at random."""
        stored, full_scale = self.planes[index]
        low, high = self.scale(stored, full_scale, rng)
        unit = (stored.astype(np.float32) - low) / np.float32(high - low)
        if self.config.windows:
            unit = np.clip(unit, 0.0, 1.0)
        if self.config.reduce > 1 and rng.random() < self.config.reduce_share:
            unit = area_reduce(unit, self.config.reduce)
        return unit

    def scale(self, stored: NDArray[np.generic], full_scale: float, rng: np.random.Generator) -> tuple[float, float]:
        """The stored values that become 0 and 1."""
        config = self.config
        if config.windows:
            return config.windows[int(rng.integers(len(config.windows)))]
        if config.percentile:
            return 0.0, float(max(np.percentile(stored, config.percentile), 1e-6))
        return config.low, config.high or full_scale

    def __len__(self) -> int:
        return len(self.planes)


def list_images(folder: Path, include: str = "*", exclude: str = "") -> list[Path]:
    """Image files of a folder (not its subfolders) in name order, by glob."""
    left_out = exclude.split()
    return sorted(
        path
        for path in folder.glob(include)
        if path.suffix.lower() in SUFFIXES and not any(fnmatch.fnmatch(path.name, glob) for glob in left_out)
    )


def data_list(sources: list[Source], data: Path) -> list[dict[str, str]]:
    """Every file that a run trains on, with its SHA-256: part of a bundle's provenance."""
    return [
        {"file": path.relative_to(data).as_posix(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for source in sources
        for path in source.paths
    ]
