"""Folders as a user has them: noisy images of one scanner, and clean photographs; synthetic, small, always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.tiny_run import BOX, scene
from training.data.noise import NoiseLaw, add_noise

LAW = NoiseLaw(0.001, 0.002, BOX)


def noisy_pixels(number: int, rows: int = 96, columns: int = 112) -> NDArray[np.uint16]:
    """16-bit pixels (rows, columns) with coloured, signal-dependent noise."""
    noisy = add_noise(scene(number, rows, columns), LAW, np.random.default_rng(number))
    return np.clip(noisy * 40000 + 5000, 0, 65535).astype(np.uint16)


def save(path: Path, pixels: NDArray[np.generic]) -> Path:
    """Writes a PNG, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_folders(root: Path, noisy: int = 8, clean: int = 5) -> tuple[Path, Path]:
    """`noisy/ct` with two images of each patient, and `clean`."""
    for number in range(noisy):
        save(root / "noisy" / "ct" / f"p{number // 2}x{number}.png", noisy_pixels(number))
    for number in range(clean):
        save(root / "clean" / f"{number}.png", (scene(number + 50, 160, 180) * 200).astype(np.uint8))
    return root / "noisy", root / "clean"
