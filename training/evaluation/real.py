"""Real noise, whose truth nobody knows: what was removed, how it is correlated, and whether it was noise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.comparator.noise_level import weak_texture
from training.data.noise import LAGS, Plane
from training.evaluation.flat import FlatPair, correlation, flat_pair, joined, level
from training.evaluation.image import HeldBack
from training.evaluation.table import Row, Table
from training.picture import panels
from training.restorer import Restorer

REACH = 5  # of the correlations


@dataclass
class Found:
    """What a restorer did to one set."""

    flat: list[FlatPair] = field(default_factory=list)
    change: list[float] = field(default_factory=list)  # root mean square over each whole image
    estimate: list[float] = field(default_factory=list)


def real_table(images: Iterable[HeldBack], restorers: Mapping[str, Restorer], pictures: Path | None = None) -> Table:
    """One row per set and restorer, levels on the unit scale, correlations at lags 1 and 2 down and across.

    Everything but `change` (root mean square over whole images) is measured on flat patches, the same
    before and after. Good removal has the correlation of the noise (`lag 1 off` is the larger distance
    of two) and most of its level. `correlations` holds all lags from -5 to 5, for JSON. With
    `pictures`, a folder, before, after and what was removed are drawn there as PNG, image by image.
    """
    found: dict[tuple[str, str], Found] = {}
    for image in tqdm(images, desc="real", mininterval=2):
        for name, restorer in restorers.items():
            after = restorer.restore(image.plane)
            scores = found.setdefault((image.set, name), Found())
            scores.flat.append(flat_pair(image.plane, after))
            scores.change.append(rms(image.plane - after))
            scores.estimate.append(restorer.noise_level(image.plane))
            if pictures:
                draw(image, after, pictures, name)
    return [real_row(set, name, scores) for (set, name), scores in found.items()]


def real_row(set: str, name: str, found: Found) -> Row:
    pair = joined(found.flat)
    parts = {"before": pair.before, "after": pair.after, "removed": pair.removed}
    lags = {part: correlation(patches) for part, patches in parts.items()}
    row: Row = {"set": set, "model": name, "images": len(found.change), "patches": len(pair.before)}
    row |= {f"level {part}": level(patches) for part, patches in parts.items()}
    row |= {"level told": float(np.median(found.estimate)), "change": float(np.mean(found.change))}
    for part, values in lags.items():
        row[f"lags {part}"] = (
            None if values is None else [round(float(values[REACH + d, REACH + a]), 3) for d, a in LAGS]
        )
    row["lag 1 off"] = whiteness(row["lags before"], row["lags removed"])
    row["correlations"] = {part: None if v is None else v.round(4).tolist() for part, v in lags.items()}
    return row


def whiteness(noise: list[float] | None, removed: list[float] | None) -> float | None:
    """Largest distance between the lag-1 correlations of what was removed and of the noise."""
    if noise is None or removed is None:
        return None
    return max(abs(a - b) for a, b in zip(noise[:2], removed[:2], strict=True))


def untouched_table(images: Iterable[HeldBack], restorers: Mapping[str, Restorer]) -> Table:
    """Nearly clean sets: the change of each image beside its own noise, root mean square; a share below 1 is right.

    An image's own noise is measured on its flat patches, or where it has too few by the weak-texture estimate.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for image in tqdm(images, desc="nearly clean", mininterval=2):
        own = level(flat_pair(image.plane, image.plane).before) or weak_texture(image.plane)
        for name, restorer in restorers.items():
            change = rms(image.plane - restorer.restore(image.plane))
            found.setdefault((image.set, name), []).append((own, change))
    return [untouched_row(set, name, np.array(values)) for (set, name), values in found.items()]


def untouched_row(set: str, name: str, values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Row:
    own, change = values.mean(axis=0)
    worst = float(np.max(values[:, 1] / np.maximum(values[:, 0], 1e-12)))
    return {
        "set": set,
        "model": name,
        "images": len(values),
        "own noise": float(own),
        "change": float(change),
        "share": float(change / max(own, 1e-12)),
        "largest share": worst,
    }


def rms(plane: Plane) -> float:
    return float(np.sqrt(np.mean(np.square(plane, dtype=np.float64))))


def draw(image: HeldBack, after: Plane, folder: Path, name: str) -> Path:
    """Writes before, after and the difference, cut to [0, 1], side by side as an 8-bit PNG; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    words = (image.set, Path(image.name).stem, name)
    path = folder / ("_".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words) + ".png")
    picture = panels(image.plane.clip(0, 1), after.clip(0, 1))  # a CT's window, not its bones
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(path, optimize=True)
    return path
