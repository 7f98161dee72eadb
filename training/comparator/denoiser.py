"""What the networks are measured against: BM3D and non-local means, told the true noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage.restoration import denoise_nl_means

from training.data.noise import Kernel, Plane

Comparator = Callable[[Plane, float, Kernel | None], Plane]


def bm3d(noisy: Plane, sigma: float, kernel: Kernel | None = None) -> Plane:
    """Block matching and 3-D filtering (Dabov et al., 2007), its authors' package; takes the noise for white."""
    from bm3d import bm3d as block_matching

    del kernel
    return np.asarray(block_matching(noisy, sigma_psd=sigma), dtype=np.float32)


def bm3d_coloured(noisy: Plane, sigma: float, kernel: Kernel | None = None) -> Plane:
    """BM3D for correlated noise (Mäkinen et al., 2020), told the noise's power spectrum as well."""
    from bm3d import bm3d as block_matching

    if not hasattr(np, "trapz"):  # the package still calls the name that NumPy 2.4 has dropped
        np.trapz = np.trapezoid  # type: ignore[attr-defined]
    return np.asarray(block_matching(noisy, sigma_psd=power_spectrum(noisy.shape, sigma, kernel)), dtype=np.float32)


def power_spectrum(shape: tuple[int, ...], sigma: float, kernel: Kernel | None) -> Plane:
    """Expected squared magnitude of the noise's Fourier transform, shape (H, W), frequency 0 first.

    Noise of variance sigma^2 that the kernel (K, K) of unit energy colours; its mean is sigma^2 H W.
    """
    response = np.abs(np.fft.fft2(np.ones((1, 1)) if kernel is None else kernel, s=shape)) ** 2
    return np.asarray(sigma**2 * response * (shape[0] * shape[1]), dtype=np.float32)


def non_local_means(noisy: Plane, sigma: float, kernel: Kernel | None = None) -> Plane:
    """Non-local means (Buades et al., 2005): scikit-image's, with the settings of its documentation."""
    del kernel
    restored = denoise_nl_means(noisy, h=0.8 * sigma, sigma=sigma, patch_size=5, patch_distance=6, fast_mode=True)
    return np.asarray(restored, dtype=np.float32)


COMPARATORS: dict[str, Comparator] = {"BM3D": bm3d, "BM3D (spectrum)": bm3d_coloured, "NLM": non_local_means}
