"""Folders as a user of super-resolution has them: pictures of high resolution, and others of low resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage import data

from tests.noisy_folder import save
from training.data.noise import NoiseLaw, add_noise
from training.degradation.bicubic import reduce_plane
from training.degradation.blind import blur, blur_kernel

SIDE = 128
LAW = NoiseLaw(0.0, (5 / 255) ** 2)


def pieces(side: int = SIDE) -> list[np.ndarray]:
    """Parts of photographs that are installed with scikit-image, uint8 (side, side), no two the same."""
    camera, coins, moon = data.camera(), data.coins(), data.moon()
    places = [(camera, 64, 160), (camera, 300, 100), (coins, 20, 30), (coins, 150, 200),
              (moon, 200, 200), (moon, 20, 300), (data.page(), 30, 60), (data.text(), 20, 160)]  # fmt: skip
    return [np.ascontiguousarray(image[top : top + side, left : left + side]) for image, top, left in places]


def write_pictures(root: Path) -> tuple[Path, Path]:
    """`hr` with four pictures; `lr/mr` with four others, blurred, made half as large, with noise, 16 bit."""
    high, low = pieces()[:4], pieces()[4:]
    for name, pixels in zip("abcd", high, strict=True):
        save(root / "hr" / f"{name}.png", pixels)
    for number, (name, pixels) in enumerate(zip("abcd", low, strict=True)):
        plane = blur((pixels / 255).astype(np.float32), blur_kernel(np.full(2, 1.2)))
        noisy = add_noise(reduce_plane(plane, 2), LAW, np.random.default_rng(number))
        save(root / "lr" / "mr" / f"{name}.png", np.clip(noisy * 40000 + 5000, 0, 65535).astype(np.uint16))
    return root / "hr", root / "lr"
