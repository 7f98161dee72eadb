"""Low-resolution images made of high-resolution ones, the same on every call, and what made each, without its noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from training.data.noise import NoiseLaw, Plane, add_noise
from training.degradation.bicubic import reduce_plane
from training.degradation.blind import blur, blur_kernel
from training.degradation.generator import apply_kernels
from training.degradation.learned import FACTS, LearnedDegradation, draw_latents, read_learned
from training.evaluation.image import HeldBack
from training.seeds import sample_generator

SEED = 30_000_002
KINDS = ("bicubic", "known", "pdm")
BLUR = 1.2  # of the known blind degradation: standard deviation at x2 in high-resolution pixels, by scale / 2 elsewhere
NOISE = 5 / 255
LEARNED = ("", "degradation")  # where a learned degradation lies in the folder that --pdm names
Again = Callable[[Plane], Plane]  # (sH, sW) -> (H, W), the same whenever it is called
Way = Callable[[Plane, np.random.Generator], tuple[Plane, Again]]


@dataclass(frozen=True, eq=False)
class Reduction:
    """One image to super-resolve."""

    image: HeldBack
    degradation: str
    low: Plane  # (H, W), not clipped
    again: Again  # what made `low` of the image, without the noise

    @property
    def high(self) -> Plane:
        """The image (sH, sW) that it was made of."""
        return self.image.plane


def find_learned(place: Path | None) -> LearnedDegradation | None:
    """The learned degradation of a folder, or of the run whose folder it is. Raises FileNotFoundError without one."""
    if place is None:
        return None
    for folder in (place / name for name in LEARNED):
        if (folder / FACTS).is_file():
            return read_learned(folder)
    raise FileNotFoundError(f"{place}: no learned degradation ({FACTS}) here")


def degradations(kinds: Iterable[str], scale: int, learned: LearnedDegradation | None = None) -> dict[str, Way]:
    """Ways to reduce by name: `bicubic`; `known` (Gaussian blur, bicubic, white noise); `pdm`, draws of a learned one.

    Raises ValueError for an unknown name, and for `pdm` without a degradation learned at this scale.
    """
    ways: dict[str, Way] = {"bicubic": partial(bicubic_way, scale), "known": partial(known_way, scale)}
    if learned is not None and learned.scale == scale:
        ways["pdm"] = partial(learned_way, learned)
    for kind in (kinds := list(kinds)):
        if kind not in KINDS:
            raise ValueError(f"degradation {kind!r}: there are {', '.join(KINDS)}")
        if kind not in ways:
            raise ValueError(f"degradation pdm: --pdm must name a degradation that was learned at x{scale}")
    return {kind: ways[kind] for kind in kinds}


def bicubic_way(scale: int, high: Plane, rng: np.random.Generator) -> tuple[Plane, Again]:
    """Anti-aliased bicubic reduction, nothing else."""
    del rng
    return reduce_plane(high, scale), partial(reduce_plane, scale=scale)


def known_way(scale: int, high: Plane, rng: np.random.Generator) -> tuple[Plane, Again]:
    """Gaussian blur, bicubic reduction, white noise of 5/255: what one may want a blind method to recover."""
    kernel = blur_kernel(np.full(2, BLUR * scale / 2))

    def again(plane: Plane) -> Plane:
        return reduce_plane(blur(plane, kernel), scale)

    return add_noise(again(high), NoiseLaw(0.0, NOISE**2), rng), again


@torch.no_grad()
def learned_way(learned: LearnedDegradation, high: Plane, rng: np.random.Generator) -> tuple[Plane, Again]:
    """One draw; made again with the kernel of that draw."""
    shape = (high.shape[0] // learned.scale, high.shape[1] // learned.scale)
    fake = learned.generator(torch.from_numpy(high)[None, None], draw_latents(1, shape, rng))

    def again(plane: Plane) -> Plane:
        image = torch.from_numpy(np.ascontiguousarray(plane, dtype=np.float32))[None, None]
        low: Plane = apply_kernels(image, fake.kernels, learned.scale)[0, 0].numpy()
        return low

    low: Plane = fake.low[0, 0].numpy()
    return low, again


def reduce_all(images: Iterable[HeldBack], ways: Mapping[str, Way]) -> Iterator[Reduction]:
    """Every image, cut to [0, 1], reduced in every way; made as they are asked for.

    The draw depends on the image's name and the degradation's alone.
    """
    for image in images:
        shown = HeldBack(image.set, image.name, np.clip(image.plane, 0, 1))
        for name, way in ways.items():
            seeds = (int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) for text in (image.name, name))
            yield Reduction(shown, name, *way(shown.plane, sample_generator(SEED, *seeds)))
