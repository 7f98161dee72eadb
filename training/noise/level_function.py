"""The level of an image's noise from its flat patches, corrected for what the patches lost with their surface.

Stage 1 fits the noise-level function a max(s, 0) + b to what its network could not predict. Where noise is correlated
the network predicts some of it from the neighbours, and the level comes out too low, by a tenth at the correlations of
real CT and more beyond. Patches of the noisy image itself, where the denoised one is flat, miss nothing but the
slowest noise, and how much that is follows from the correlation. They are few and of few signals: they say how high
the function lies, stage 1 says how it is shaped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.noise.correlation import PATCHES_MIN, FlatPatches, degrees_of_freedom, kept_share

# Factors on the variance. A network that has learned little calls its own error noise, and the law is far too high; too
# low it is by what the network can predict of correlated noise. More says that the patches are not flat.
SMALLEST, LARGEST = 0.01, 4.0


def variance_factor(patches: FlatPatches, law: tuple[float, float], correlation: NDArray[np.float64]) -> float:
    """What the variance a max(s, 0) + b of a law (a, b) must be multiplied with to be that of an image's patches.

    `correlation` (11, 11) is that of the noise. The median of the patches, which texture in some does not move;
    1 where there are fewer than 8, and between 0.01 and 4.
    """
    if len(patches) < PATCHES_MIN:
        return 1.0
    variance = np.maximum(law[0] * np.maximum(patches.signal, 0) + law[1], 1e-12)
    ratio = float(np.median(np.square(patches.noise).mean((1, 2)) / variance))
    ratio /= kept_share(correlation) * median_of_mean(degrees_of_freedom(correlation))
    return float(np.clip(ratio, SMALLEST, LARGEST))


def median_of_mean(freedom: float) -> float:
    """Median over mean of a chi-squared variable (Wilson and Hilferty, 1931)."""
    return (1 - 2 / (9 * freedom)) ** 3
