"""Image quality measures on the unit scale (peak 1)."""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

from training.data.noise import Plane


def psnr(image: Plane, reference: Plane) -> float:
    """Peak signal-to-noise ratio in dB, peak 1; infinite for equal images."""
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))


def ssim(image: Plane, reference: Plane) -> float:
    """Structural similarity with the 11x11 Gaussian window of sigma 1.5 (Wang et al., 2004)."""
    return float(
        structural_similarity(
            image.astype(np.float64),
            reference.astype(np.float64),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
