"""What the networks are measured against: BM3D and non-local means, told the true noise level."""

from __future__ import annotations

import numpy as np
from skimage.restoration import denoise_nl_means

from training.data.noise import Plane


def bm3d(noisy: Plane, sigma: float) -> Plane:
    """Block matching and 3-D filtering (Dabov et al., 2007), its authors' package."""
    from bm3d import bm3d as block_matching

    return np.asarray(block_matching(noisy, sigma_psd=sigma), dtype=np.float32)


def non_local_means(noisy: Plane, sigma: float) -> Plane:
    """Non-local means (Buades et al., 2005): scikit-image's, with the settings of its documentation."""
    restored = denoise_nl_means(noisy, h=0.8 * sigma, sigma=sigma, patch_size=5, patch_distance=6, fast_mode=True)
    return np.asarray(restored, dtype=np.float32)


COMPARATORS = {"BM3D": bm3d, "NLM": non_local_means}
