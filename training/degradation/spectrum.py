"""Mean power spectra of two unpaired image sets, and what a kernel and a noise make of the one.

Of images of the same kind the mean power at a frequency differs between the sets by what degraded one of them:
P_low(f) = c * sum over aliases |K|^2 P_high + P_noise(f). It says nothing of phase, and needs no pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.data.noise import Plane

SIDE = 32  # rows of a low-resolution patch; a high-resolution one covers the same field
LOWEST = 1.5 / SIDE  # cycles per low-resolution pixel: below, the window's leakage is all there is to see
PATCHES_MAX = 256  # of one plane
SMOOTH = 5  # frequencies, each way
FLOOR = 1e-12


@dataclass(frozen=True)
class Spectra:
    """Mean power per pixel of both sets, frequency 0 first; white noise of variance v has power v everywhere."""

    high: Tensor  # (32 s, 32 s)
    low: Tensor  # (32, 32)

    @property
    def scale(self) -> int:
        return self.high.shape[0] // SIDE

    def to(self, device: torch.device) -> Spectra:
        return Spectra(self.high.to(device), self.low.to(device))

    @property
    def used(self) -> Tensor:
        """Frequencies that are compared, boolean (32, 32)."""
        frequency = torch.fft.fftfreq(SIDE, device=self.low.device)
        return torch.hypot(frequency[:, None], frequency[None, :]) > LOWEST

    def degraded(self, kernels: Tensor) -> Tensor:
        """The high-resolution set's power after kernels (B, K, K) and reduction, their mean: (32, 32)."""
        transfer = torch.fft.fft2(kernels.float(), s=self.high.shape).abs().square().mean(0)
        scale = self.scale
        folded: Tensor = (transfer * self.high).reshape(scale, SIDE, scale, SIDE).sum((0, 2))
        return folded / scale**2


def measure_spectra(high: Iterable[Plane], low: Iterable[Plane], scale: int) -> Spectra:
    """Mean power of high- and low-resolution planes. Raises ValueError where all of a set are too small."""
    return Spectra(
        *(
            torch.from_numpy(mean_power(planes, side).astype(np.float32))
            for planes, side in ((high, SIDE * scale), (low, SIDE))
        )
    )


def mean_power(planes: Iterable[Plane], side: int) -> NDArray[np.float64]:
    """Mean windowed power (side, side) of the patches of all planes, every plane counted alike."""
    powers = [patch_power(patches_of(plane, side)) for plane in planes if min(plane.shape) >= side]
    if not powers:
        raise ValueError(f"degradation: no image has the {side} x {side} pixels that its spectrum is measured on")
    return np.asarray(np.mean(powers, axis=0))


def patches_of(plane: Plane, side: int) -> Plane:
    """Half overlapping patches (N, side, side), at most 256."""
    grid = sliding_window_view(plane, (side, side))[:: side // 2, :: side // 2].reshape(-1, side, side)
    return grid[:: max(1, -(-len(grid) // PATCHES_MAX))]


def patch_power(patches: Plane) -> NDArray[np.float64]:
    """Mean power (N, N) of patches (P, N, N) under the window, their own mean taken off."""
    weight = window(patches.shape[-1])
    mean = (patches * weight**2).mean((1, 2), keepdims=True)
    return np.asarray((np.abs(np.fft.fft2((patches - mean) * weight)) ** 2).mean(0) / weight.size)


def window(side: int) -> NDArray[np.float64]:
    """Hann's window (side, side) of mean square 1."""
    one = np.hanning(side + 2)[1:-1]
    return np.asarray(np.outer(one, one) / np.mean(one**2))


def noise_power_of(noise: Tensor) -> Tensor:
    """Mean power (32, 32) of noise (B, 1, H, W), H and W at least 32, by half overlapping patches; differentiable.

    Smoothed: what is compared are logarithms, and those of a rough spectrum are too low by half its variance.
    """
    weight = torch.from_numpy(window(SIDE)).to(noise)
    patches = noise[:, 0].unfold(1, SIDE, SIDE // 2).unfold(2, SIDE, SIDE // 2).reshape(-1, SIDE, SIDE)
    return smooth(torch.fft.fft2(patches * weight).abs().square().mean(0) / SIDE**2)


def smooth(power: Tensor) -> Tensor:
    """A spectrum (N, N) averaged over 5 x 5 frequencies, as is fine for noise that correlates over a few pixels."""
    padded = F.pad(power[None, None], (SMOOTH // 2,) * 4, mode="circular")
    return F.avg_pool2d(padded, SMOOTH, 1)[0, 0]
