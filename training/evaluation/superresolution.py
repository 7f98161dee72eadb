"""Super-resolution beside bicubic interpolation, image by image, and whether the grid is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from skimage.registration import phase_cross_correlation
from torch.nn import functional as F
from tqdm import tqdm

from training.data.noise import Plane
from training.degradation.bicubic import reduce
from training.evaluation.image import HeldBack
from training.evaluation.score import score
from training.evaluation.table import Table


def superresolution_table(images: Iterable[HeldBack], scale: int, upscale: Callable[[Plane], Plane]) -> Table:
    """PSNR and SSIM beside bicubic, and the shift in high-resolution pixels, image by image.

    The shift is measured against bicubic interpolation, whose grid is right by construction: against
    the original, what the reduction took away can shift the peak of the correlation by itself.
    """
    rows = []
    for image in tqdm(images, desc=f"x{scale}", mininterval=2):
        high = image.plane
        low = reduce(torch.from_numpy(high)[None], scale)
        bicubic = F.interpolate(low[None], scale_factor=scale, mode="bicubic", align_corners=False)[0, 0].numpy()
        restored = upscale(low[0].numpy())
        shift, _, _ = phase_cross_correlation(bicubic, restored, upsample_factor=100, normalization=None)
        rows.append(
            {"set": image.set, "image": image.name, "shift": float(np.abs(shift).max())}
            | {"bicubic": score(bicubic, high), "MedRestore": score(restored, high)}
        )
    return rows
