"""Classical reduction: anti-aliased bicubic, or block means, aligned by pixel area."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.noise import NoiseLaw, Plane, add_noise, clip_and_quantise
from training.degradation.config import BicubicConfig


def reduce(image: Tensor, scale: int, kind: str = "bicubic") -> Tensor:
    """image (C, H, W) made `scale` times smaller: anti-aliased bicubic (a = -0.5, as MATLAB's) or area mean."""
    if kind == "area":
        return F.avg_pool2d(image[None], scale)[0]
    size = (image.shape[-2] // scale, image.shape[-1] // scale)
    return F.interpolate(image[None], size=size, mode="bicubic", align_corners=False, antialias=True)[0]


def reduce_plane(plane: Plane, scale: int, kind: str = "bicubic") -> Plane:
    """The same of a plane (sH, sW): (H, W)."""
    small: Plane = reduce(torch.from_numpy(np.ascontiguousarray(plane))[None], scale, kind)[0].numpy()
    return small


@dataclass(frozen=True)
class BicubicDegradation:
    """Reduction without blur; shares of block means, of a little white noise and of rounding to 8 bits."""

    config: BicubicConfig
    scale: int

    def degrade(self, high: Plane, rng: np.random.Generator) -> Plane:
        """high (sH, sW), unit scale, as low (H, W)."""
        low = reduce_plane(high, self.scale, "area" if rng.random() < self.config.area_share else "bicubic")
        if rng.random() < self.config.noise_share:
            sigma = rng.uniform(0.0, self.config.highest_noise)
            low = add_noise(low, NoiseLaw(0.0, sigma**2), rng)
        return clip_and_quantise(low, 256) if rng.random() < self.config.quantise_share else low
