"""Scores a bundle on held-back images: `medrestore evaluate denoise|superresolve ...`.

Denoising: white noise on clean images, unclipped (float) and clipped to 8 bits, beside BM3D and
non-local means that are told the true level; CT in HU; noise-free input; the level estimate.
Super-resolution: x2 and x4 beside bicubic interpolation, image by image, and the phase shift.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.registration import phase_cross_correlation
from skimage.restoration import estimate_sigma
from torch.nn import functional as F
from tqdm import tqdm

from models.bundle import find_bundle
from training.comparator import COMPARATORS
from training.config import build
from training.data.crop import middle
from training.data.noise import NoiseLaw, Plane, add_noise, clip_and_quantise
from training.data.pair import reduce
from training.data.source import Source, SourceConfig
from training.metric import psnr, ssim
from training.restorer import LocalBundle, Restorer, Service
from training.seeds import sample_generator

LEVELS = (15, 25, 50)  # standard deviations in grey levels of 255
HU_LEVELS = (3, 10, 30, 100)
HU_SPAN = 4095.0  # HU on the unit scale of a CT
ESTIMATE_LEVELS = (5, 10, 15, 25, 35, 50)
SIDE = 320  # larger images are cropped to their middle: BM3D takes seconds for each
SEED = 30_000_001
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One noisy image to restore."""

    set: str
    image: str
    clean: Plane
    noisy: Plane
    sigma: float
    clipped: bool

    @property
    def key(self) -> str:
        """Identifies the noisy image to the bit."""
        return hashlib.sha256(self.noisy.tobytes()).hexdigest()[:32]


def evaluation_sets(data: Path, config: Path, group: str, count: int) -> Iterator[tuple[str, str, Plane]]:
    """(set, image, plane) for the first `count` images, evenly spread, of every set of a group."""
    for raw in tomllib.loads(config.read_text(encoding="utf-8")).get(group, []):
        source = Source(build(SourceConfig, raw, config.name), data)
        for i in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)):
            plane = source.plane(int(i), np.random.default_rng(0))
            yield source.config.name, source.paths[i].name, middle(plane, SIDE)


def degrade(name: str, image: str, clean: Plane, sigma: float, clipped: bool) -> Case:
    """White noise of level sigma; the draw depends on the image's name and the level alone."""
    seed = int(hashlib.sha256(image.encode()).hexdigest()[:12], 16)
    noisy = add_noise(clean, NoiseLaw(0.0, sigma**2), sample_generator(SEED, seed, round(sigma * 1e6)))
    return Case(name, image, clean, clip_and_quantise(noisy, 256) if clipped else noisy, sigma, clipped)


class Comparisons:
    """Scores of the comparators, kept in a file: they take minutes and never change."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, list[float]] = json.loads(path.read_text()) if path and path.exists() else {}

    def scores(self, method: str, case: Case) -> list[float]:
        key = f"{method}:{case.key}"
        if key not in self.known:
            restored = np.clip(COMPARATORS[method](case.noisy, case.sigma), 0, 1)
            self.known[key] = [psnr(restored, case.clean), ssim(restored, case.clean)]
            if self.path:
                self.path.write_text(json.dumps(self.known))
        return self.known[key]


def mean(rows: list[list[float]]) -> list[float]:
    return [float(v) for v in np.mean(np.array(rows), axis=0)]


def denoising_table(cases: list[Case], restorer: Restorer | None, comparisons: Comparisons) -> Table:
    """Mean PSNR and SSIM per set, level and clipping, of every method."""
    found: dict[tuple[Any, ...], dict[str, list[list[float]]]] = {}
    for case in tqdm(cases, desc="denoise"):
        methods = found.setdefault((case.set, round(case.sigma * 255, 3), case.clipped), {})
        noisy = np.clip(case.noisy, 0, 1)
        methods.setdefault("noisy", []).append([psnr(noisy, case.clean), ssim(noisy, case.clean)])
        for method in COMPARATORS:
            methods.setdefault(method, []).append(comparisons.scores(method, case))
        if restorer:
            restored = np.clip(restorer.restore(case.noisy, eight_bit=case.clipped), 0, 1)
            methods.setdefault("MedRestore", []).append([psnr(restored, case.clean), ssim(restored, case.clean)])
    return [
        {"set": name, "sigma": sigma, "clipped": clipped, "images": len(methods["noisy"])}
        | {method: mean(rows) for method, rows in methods.items()}
        for (name, sigma, clipped), methods in found.items()
    ]


def hounsfield_table(images: list[tuple[str, str, Plane]], restorer: Restorer) -> Table:
    """Root mean square error in HU before and after, per set, beside BM3D told the level; 0 HU is the clean image."""
    rows = []
    for level in (0, *HU_LEVELS):
        errors: dict[str, list[list[float]]] = {}
        for name, image, clean in images:
            case = degrade(name, image, clean, level / HU_SPAN, clipped=False)
            restored = restorer.restore(case.noisy)
            other = COMPARATORS["BM3D"](case.noisy, case.sigma) if level else clean
            found = [HU_SPAN * float(np.sqrt(np.mean((x - clean) ** 2))) for x in (case.noisy, restored, other)]
            errors.setdefault(name, []).append(found)
        for name, found_there in errors.items():
            before, after, bm3d = mean(found_there)
            rows.append({"set": name, "noise_hu": level, "before": before, "MedRestore": after, "BM3D": bm3d})
    return rows


def estimate_table(images: list[tuple[str, str, Plane]], restorer: Restorer) -> Table:
    """Median relative error of the noise-level estimate, beside scikit-image's wavelet estimate."""
    rows = []
    for level in ESTIMATE_LEVELS:
        ours, wavelet = [], []
        for name, image, clean in images:
            case = degrade(name, image, clean, level / 255, clipped=False)
            ours.append(abs(restorer.noise_level(case.noisy) / case.sigma - 1))
            wavelet.append(abs(float(estimate_sigma(case.noisy)) / case.sigma - 1))
        rows.append({"sigma": level, "MedRestore": float(np.median(ours)), "estimate_sigma": float(np.median(wavelet))})
    return rows


def untouched_table(images: list[tuple[str, str, Plane]], restorer: Restorer) -> Table:
    """PSNR of output against input where no noise was added; target 45 dB."""
    return [{"set": s, "image": i, "psnr": psnr(restorer.restore(plane), plane)} for s, i, plane in images]


def superresolution_table(images: list[tuple[str, str, Plane]], scale: int, upscale: Callable[[Plane], Plane]) -> Table:
    """PSNR and SSIM beside bicubic, and the shift in high-resolution pixels, image by image.

    The shift is measured against bicubic interpolation, whose grid is right by construction: against
    the original, what the reduction took away can shift the peak of the correlation by itself.
    """
    rows = []
    for name, image, high in tqdm(images, desc=f"x{scale}"):
        low = reduce(torch.from_numpy(high)[None], scale)
        bicubic = F.interpolate(low[None], scale_factor=scale, mode="bicubic", align_corners=False)[0, 0].numpy()
        restored = upscale(low[0].numpy())
        shift, _, _ = phase_cross_correlation(bicubic, restored, upsample_factor=100, normalization=None)
        rows.append(
            {"set": name, "image": image, "shift": float(np.abs(shift).max())}
            | {
                method: [psnr(np.clip(x, 0, 1), high), ssim(np.clip(x, 0, 1), high)]
                for method, x in (("bicubic", bicubic), ("MedRestore", restored))
            }
        )
    return rows


def show(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:.2f} / {value[1]:.3f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Table) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(show(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def evaluate_denoise(options: argparse.Namespace, restorer: Restorer | None) -> dict[str, Table]:
    photographs = list(evaluation_sets(options.data, options.sets, "photographs", options.images))
    medical = list(evaluation_sets(options.data, options.sets, "medical", max(1, options.images // 2)))
    cases = [
        degrade(name, image, plane, level / 255, clipped)
        for name, image, plane in photographs + medical
        for level in LEVELS
        for clipped in (False, True)
    ]
    tables = {"denoise": denoising_table(cases, restorer, Comparisons(options.cache))}
    if restorer:
        hounsfield = list(evaluation_sets(options.data, options.sets, "hounsfield", max(1, options.images // 2)))
        tables["hounsfield"] = hounsfield_table(hounsfield, restorer)
        tables["estimate"] = estimate_table(photographs + medical, restorer)
        halves = [(s, i, F.avg_pool2d(torch.from_numpy(p)[None], 2)[0].numpy()) for s, i, p in photographs]
        tables["noise_free"] = untouched_table(halves + medical, restorer)
    return tables


def evaluate_superresolve(options: argparse.Namespace, restorer: Restorer) -> dict[str, Table]:
    images = [
        found
        for group in ("photographs", "medical")
        for found in evaluation_sets(options.data, options.sets, group, options.images)
    ]
    return {f"x{options.scale}": superresolution_table(images, options.scale, restorer.restore)}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="medrestore evaluate", description=__doc__)
    parser.add_argument("task", choices=["denoise", "superresolve"])
    parser.add_argument("--model", help="name or name@version; default denoise or superresolve-xN")
    parser.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "models" / "bundles")
    parser.add_argument("--url", help="a running service; without it the bundle runs in this process")
    parser.add_argument("--precision", choices=["exact", "fast"], help="of the service; default: its own rule")
    parser.add_argument("--comparators-only", action="store_true", help="fill --cache; needs no model")
    parser.add_argument("--scale", type=int, choices=[2, 4], default=2)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", type=Path, default=Path(__file__).parent / "configs" / "evaluation.toml")
    parser.add_argument("--images", type=int, default=12, help="photographs; half as many of each medical set")
    parser.add_argument("--cache", type=Path, help="file that keeps the comparators' scores")
    parser.add_argument("--json", type=Path, help="writes the tables there too")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore evaluate`; returns the exit status."""
    options = parse(argv)
    name = options.model or ("denoise" if options.task == "denoise" else f"superresolve-x{options.scale}")
    if options.comparators_only:
        evaluate_denoise(options, None)
        return 0
    restorer: Restorer = (
        Service(options.url, options.task, name, options.scale, options.precision)
        if options.url
        else LocalBundle(find_bundle(options.repository, name))
    )
    tables = (evaluate_denoise if options.task == "denoise" else evaluate_superresolve)(options, restorer)
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown(rows)}")
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    return 0
