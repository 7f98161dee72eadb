"""A runner without a network: 3 x 3 means with reflected borders, and the calls that came."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app.noise import NAMES, Array
from app.tiling import Tiling
from models.bundle import Bundle, FileEntry, Manifest
from models.imaging.image import Image, ValueMap


class Smoother:
    """Runs `estimate` (variance of the horizontal differences) and `restore` (mean of 3 x 3) in this process."""

    backend = "numpy"
    precision = "fp32"
    window = 16

    def __init__(self, scale: int = 1, colour: tuple[float, ...] = ()) -> None:
        self.scale = scale
        self.colour = colour  # correlations that `estimate` gives after the level
        self.tiling = Tiling()
        self.calls: list[tuple[str, Mapping[str, Array]]] = []

    def graphs(self) -> list[str]:
        return [graph for graph, _ in self.calls]

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        assert all(array.dtype == np.float32 and array.shape[0] == 1 for array in arrays.values())
        self.calls.append((graph, arrays))
        await asyncio.sleep(0)
        image = arrays["image"]
        if graph == "estimate":
            variance = np.var(np.diff(image[0, 0], axis=1)) / 2 if image.shape[3] > 1 else 0.0
            return {"parameters": np.array([[0, variance, 0, *self.colour]], np.float32)}
        if self.scale > 1:
            return {"restored": image.repeat(self.scale, 2).repeat(self.scale, 3)}
        strength = arrays["strength"][0]
        level = np.sqrt(arrays["parameters"][0, 1])
        return {
            "restored": (image + strength * (mean_3x3(image) - image)).astype(np.float32),
            "noise": np.full_like(image, level),
        }


def mean_3x3(image: Array) -> Array:
    """Mean of 3 x 3 neighbours of (B, 1, rows, columns), float32, whatever the position in the array."""
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect")
    rows, columns = image.shape[2:]
    total = np.zeros_like(image)
    for down in range(3):
        for across in range(3):
            total += padded[:, :, down : down + rows, across : across + columns]
    return total / np.float32(9)


def bundle_of(task: str = "denoise", scale: int = 1, **changes: object) -> Bundle:
    """A bundle that was never written: its manifest alone."""
    graphs = {"estimate", "restore"} if task == "denoise" else {"restore"}
    facts = {
        "name": "smoother",
        "version": "1",
        "task": task,
        "scale": scale,
        "network": "none",
        "summary": "",
        "licence": "Apache-2.0",
        "graphs": {graph: {} for graph in graphs},
        "files": dict[str, FileEntry](),
        "tiles": [(16, 16), (32, 32)],
        "multiple": 4,
        "halo": 4,
        "parameters": list(NAMES) if task == "denoise" else [],
        "trained_sigma": (0.0, 0.1),
    }
    return Bundle(Path("nowhere"), Manifest(**{**facts, **changes}), "ab" * 32)  # type: ignore[arg-type]


COLOURED = [*NAMES, "correlation_down_1", "correlation_across_1", "correlation_down_2", "correlation_across_2"]
HU = ValueMap(scale=1 / 4096, offset=0.25, slope=1.0, intercept=-1024.0, unit="HU")


def image_of(pixels: Array, values: ValueMap = HU, **changes: object) -> Image:
    """An image of pixels (frames, rows, columns, samples) that may take any value of its type."""
    integer = np.issubdtype(pixels.dtype, np.integer)
    limits = np.iinfo(pixels.dtype) if integer else np.finfo(pixels.dtype)
    return Image(pixels, values, "tiff", float(limits.min), float(limits.max), **changes)  # type: ignore[arg-type]


def noisy(*shape: int, seed: int = 1, sigma: float = 30.0) -> Array:
    """Stored values around 1000, int16."""
    return np.random.default_rng(seed).normal(1000, sigma, shape).round().astype(np.int16)
