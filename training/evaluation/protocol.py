"""The field's benchmark of super-resolution, `y-shave`: Set5-style folders of high-resolution images.

Each image is cut to a multiple of the scale and reduced by MATLAB's bicubic `imresize` to an 8-bit colour image, whose
luma (ITU-R BT.601, 16 to 235, as MATLAB's `rgb2ycbcr`) is what a network is given. Answers are rounded to 8 bits and
compared with the original's luma, `scale` pixels shaved off every border. Gray images count as colour of three equal
channels, as in the field's own scripts.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.evaluation.imresize import imresize_8bit
from training.evaluation.table import Row, Table, mean
from training.evaluation.upscaler import Upscale, enlarge
from training.metric import psnr, ssim

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}
LUMA = np.array([65.481, 128.553, 24.966]) / 255  # of 8-bit red, green, blue
BLACK = 16.0
WINDOW = 11  # of SSIM: no smaller image has one
Colour = NDArray[np.uint8]  # (H, W, 3)


def benchmark_images(folder: Path, include: str = "*", exclude: str = "") -> list[Path]:
    """PNG, JPEG and BMP files of a folder in name order; `exclude` are globs separated by spaces.

    Raises FileNotFoundError where there are none.
    """
    found = sorted(
        path
        for path in folder.glob(include)
        if path.suffix.lower() in SUFFIXES and not any(fnmatch.fnmatch(path.name, glob) for glob in exclude.split())
    )
    if not found:
        raise FileNotFoundError(f"{folder}: no PNG, JPEG or BMP file matches {include!r}")
    return found


def read_colour(path: Path, scale: int) -> Colour:
    """An image as (H, W, 3) uint8, cut at the right and below to multiples of the scale.

    Raises ValueError for what is no 8-bit image, or too small to be scored.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                raise ValueError(f"{path.name}: mode {image.mode}; the y-shave protocol takes 8-bit images alone")
            colour = np.asarray(image.convert("RGB"))
    except OSError as error:  # Pillow's own errors are of that kind
        raise ValueError(f"{path.name}: not a readable image ({error})") from error
    rows, columns = (length // scale * scale for length in colour.shape[:2])
    if min(rows, columns) < WINDOW + 2 * scale:
        raise ValueError(f"{path.name}: {rows} x {columns} pixels are too few to be scored at x{scale}")
    return colour[:rows, :columns]


def luma(colour: Colour) -> NDArray[np.float64]:
    """Y (H, W) of an 8-bit colour image, 16 to 235, not rounded."""
    y: NDArray[np.float64] = BLACK + colour @ LUMA
    return y


def shaved_score(answer: NDArray[np.float64], truth: NDArray[np.float64], scale: int) -> list[float]:
    """[PSNR, SSIM] of lumas (H, W) on the 8-bit range, `scale` pixels shaved; SSIM over its valid region."""
    inner = slice(scale, -scale)
    shown, clean = (y[inner, inner] / 255 for y in (answer, truth))
    return [psnr(shown, clean), ssim(shown, clean)]


def enlarge_luma(low: Colour, upscale: Upscale, scale: int) -> NDArray[np.float64]:
    """What a network makes of a colour image's luma (H, W), in whole steps of the 8-bit range (sH, sW)."""
    restored = enlarge((luma(low) / 255).astype(np.float32), upscale, scale).astype(np.float64)
    return np.rint(np.clip(restored, 0, 1) * 255)


def y_shave_table(paths: Iterable[Path], scale: int, models: Mapping[str, Upscale]) -> Table:
    """One row per image and one of their mean: [PSNR, SSIM] of bicubic and each model, and its gain in dB."""
    rows = []
    for path in tqdm(list(paths), desc=f"y-shave x{scale}", mininterval=2):
        high = read_colour(path, scale)
        low, truth = imresize_8bit(high, 1 / scale), luma(high)
        row: Row = {"image": path.name, "bicubic": shaved_score(luma(imresize_8bit(low, scale)), truth, scale)}
        for name, upscale in models.items():
            row[name] = shaved_score(enlarge_luma(low, upscale, scale), truth, scale)
            row[f"{name} gain"] = row[name][0] - row["bicubic"][0]
        rows.append(row)
    return [*rows, mean_row(rows)]


def mean_row(rows: Table) -> Row:
    """Means of every column over the images."""
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "image"}
    means: Row = {"image": f"mean of {len(rows)}"}
    for key, values in columns.items():
        means[key] = mean(values) if isinstance(values[0], list) else float(np.mean(values))
    return means
