"""What the trained model did to the really noisy images of a run, by set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from training.data.crop import middle
from training.data.noise import Plane
from training.evaluation.flat import correlation, flat_pair, joined, level
from training.noise.correlation import LOWEST_SNR
from training.pipeline.record import PRELIMINARY_IMAGES, Audit, NoisyImage, read_plane
from training.restorer import Restorer

CENTRE = 5  # index of lag 0 in a measured correlation (11, 11)
BLOCK = 16  # side of the blocks that count as uniform, and of those of the level function
UNIFORM = 0.1  # share of the blocks, the smoothest ones, that count as uniform


@dataclass(frozen=True, eq=False)
class Restored:
    """One noisy image, what stage 1 and the trained model made of it; planes (H, W) on the set's unit scale."""

    record: NoisyImage
    noisy: Plane
    preliminary: Plane | None
    restored: Plane

    @property
    def residual(self) -> Plane:
        """What was taken away."""
        return self.noisy - self.restored

    @property
    def guide(self) -> Plane:
        """What tells where the image is flat."""
        return self.restored if self.preliminary is None else self.preliminary


def shown_images(audit: Audit, name: str, count: int) -> list[NoisyImage]:
    """Test images of a set, evenly spread; training images where the set has no test image."""
    images = [image for image in audit.images if image.set == name]
    found = [image for image in images if image.split == "test"] or images
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, count).round().astype(int))]


def restore_set(out: Path, images: Iterable[NoisyImage], side: int, model: Restorer) -> list[Restored]:
    """The middles, at most side x side, of these images, restored."""
    found = []
    for image in images:
        noisy = middle(read_plane(out, image.file), side)
        path = PRELIMINARY_IMAGES / f"{image.id}.npy"
        preliminary = middle(read_plane(out, path.as_posix()), side) if (out / path).exists() else None
        found.append(Restored(image, noisy, preliminary, model.restore(noisy)))
    return found


def blocks(plane: Plane, side: int = BLOCK) -> Plane:
    """Blocks (n, side, side) of a plane (H, W), without overlap."""
    if min(plane.shape) < side:
        return np.empty((0, side, side), np.float32)
    return np.asarray(sliding_window_view(plane, (side, side))[::side, ::side].reshape(-1, side, side))


def lag1(correlation: Any) -> list[float] | None:
    """[down, across] of a measured correlation (11, 11)."""
    if correlation is None:
        return None
    return [float(correlation[CENTRE + 1, CENTRE]), float(correlation[CENTRE, CENTRE + 1])]


def level_points(restored: Restored, count: int = 60) -> list[list[float]]:
    """[signal, standard deviation] of the noise in the smoothest half of an image's blocks, thinned out."""
    signal, noise = blocks(restored.guide), blocks(restored.noisy - restored.guide)
    if not len(signal):
        return []
    smooth = np.argsort(signal.std((1, 2)), kind="stable")[: max(1, len(signal) // 2)]
    kept = smooth[np.linspace(0, len(smooth) - 1, min(count, len(smooth))).astype(int)]
    return [[float(signal[i].mean()), float(noise[i].std())] for i in kept]


def bias(restored: Restored) -> float | None:
    """Mean shift in the most uniform blocks, in the set's own units (HU for CT); None for a tiny image."""
    smooth = blocks(restored.restored)
    if len(smooth) < 4:
        return None
    kept = np.argsort(smooth.std((1, 2)), kind="stable")[: max(4, round(UNIFORM * len(smooth)))]
    shift = float(-blocks(restored.residual)[kept].mean(dtype=np.float64))
    return shift * (restored.record.high - restored.record.low)


def structure(restored: Restored) -> float:
    """Correlation of what was taken away with the detail that was kept: near 0 where only noise was taken."""
    detail = restored.restored - local_mean(restored.restored)
    removed = restored.residual - local_mean(restored.residual)
    energy = float(np.sqrt((detail**2).mean(dtype=np.float64) * (removed**2).mean(dtype=np.float64)))
    return float((detail * removed).mean(dtype=np.float64)) / energy if energy else 0.0


def local_mean(plane: Plane) -> Plane:
    """5 x 5 mean of a plane (H, W), edges repeated."""
    padded = np.pad(plane, 2, mode="edge")
    return np.asarray(sliding_window_view(padded, (5, 5)).mean((2, 3), dtype=np.float32))


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; None where nothing is."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def measure_set(restored: list[Restored], rician: bool = False) -> dict[str, Any]:
    """All numbers of one set; correlations are (11, 11) lists with 1 in the middle, or None."""
    lowest_snr = LOWEST_SNR if rician else 0.0
    flat = joined([flat_pair(r.noisy, r.restored, lowest_snr, r.guide) for r in restored])
    parts = {"noise": flat.before, "removed": flat.removed, "left": flat.after}
    correlations = {name: correlation(patches) for name, patches in parts.items()}
    return {
        "images": [r.record.id for r in restored],
        "held_back": all(r.record.split == "test" for r in restored),
        "level_before": level(flat.before),
        "level_after": level(flat.after),
        "change": float(np.mean([np.sqrt((r.residual**2).mean(dtype=np.float64)) for r in restored])),
        "bias": mean_of(bias(r) for r in restored),
        "structure": mean_of(structure(r) for r in restored),
        "lag1": {name: lag1(c) for name, c in correlations.items()},
        "correlation": {name: None if c is None else c.tolist() for name, c in correlations.items()},
        "level_points": [point for r in restored for point in level_points(r)],
    }
