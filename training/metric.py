"""Image quality measures on the unit scale (peak 1), and of how well a result agrees with what it was made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import prewitt
from skimage.metrics import structural_similarity

from training.data.source import area_reduce

Image = NDArray[np.floating[Any]]  # (H, W)
CONTRAST = 170 / 255**2  # of gradients on the unit scale, below which they count as equal


def psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in dB, peak 1; infinite for equal images."""
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))


def ssim(image: Image, reference: Image) -> float:
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


def gradient_similarity(image: Image, reference: Image) -> tuple[float, float]:
    """Mean (1 is best) and standard deviation (GMSD, 0 is best) of the gradient magnitudes' similarity.

    Xue et al., "Gradient Magnitude Similarity Deviation" (IEEE Trans. Image Processing 23, 2014): both images are
    halved by 2x2 means, gradients are Prewitt's, and what lies beyond the border is black.
    """
    first, second = gradient_magnitude(image), gradient_magnitude(reference)
    similarity = (2 * first * second + CONTRAST) / (first**2 + second**2 + CONTRAST)
    return float(similarity.mean()), float(similarity.std())


def gradient_magnitude(image: Image) -> NDArray[np.float64]:
    """Of the halved image (H // 2, W // 2): Prewitt's 3x3 differences of means, unit scale per pixel pair."""
    half = area_reduce(image.astype(np.float32), 2).astype(np.float64)
    down, across = (prewitt(half, axis, mode="constant") / 3 for axis in (0, 1))
    magnitude: NDArray[np.float64] = np.hypot(down, across)
    return magnitude
