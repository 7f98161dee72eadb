"""Losses, each a function of tensors on the unit scale to one number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels
STABLE = (0.01**2, 0.03**2)  # its constants at a data range of 1


def charbonnier(output: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + epsilon^2): L1 with a rounded tip (Charbonnier et al., 1994)."""
    return torch.sqrt((output - target) ** 2 + epsilon**2).mean()


def noise_weighted_l1(output: Tensor, target: Tensor, sigma: Tensor, weight: Tensor | None = None) -> Tensor:
    """L1 per sample, divided by the square root of its noise level sigma (B,), times its weight (B,) if given.

    Plain L1 lets the noisiest samples decide everything; division by sigma itself would spend the
    network on levels where nothing can be gained. The root lies between.
    """
    error = (output - target).abs().mean(dim=(1, 2, 3))
    scaled = error / torch.sqrt(sigma + 2 / 255)
    return (scaled if weight is None else scaled * weight).mean()


def log_level_error(estimated: Tensor, true: Tensor, negligible: float = 1 / 255) -> Tensor:
    """Mean |log((estimated + c) / (true + c))| of noise levels.

    The constant c (`negligible`) keeps levels below a grey step, which the images' own noise hides,
    from drowning those that matter. Symmetric on purpose: a penalty on underestimation, as in
    CBDNet (Guo et al., 2019), made every estimate 5 to 7 % too high.
    """
    return (torch.log(estimated + negligible) - torch.log(true + negligible)).abs().mean()


def ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """(1 - SSIM) / 2 of (B, C, H, W) on the unit scale, 0 for equal images, 1 for opposite ones.

    11x11 Gaussian window of sigma 1.5, where it fits into the image, data range 1 (Wang et al., 2004). In float32
    whatever the precision of the run: a variance is a small difference of large numbers. Raises ValueError for images
    smaller than the window.
    """
    if min(output.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW}, not {tuple(output.shape[-2:])}")
    with torch.autocast(output.device.type, enabled=False):
        x, y = output.float(), target.float()
        mean_x, mean_y, xx, yy, xy = smooth(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
        luminance = (2 * mean_x * mean_y + STABLE[0]) / (mean_x**2 + mean_y**2 + STABLE[0])
        variances = (xx - mean_x**2) + (yy - mean_y**2)
        structure = (2 * (xy - mean_x * mean_y) + STABLE[1]) / (variances + STABLE[1])
        return (1 - (luminance * structure).mean()) / 2


def smooth(x: Tensor) -> Tensor:
    """Gaussian means of x (B, C, H, W), (B, C, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    row = (weights / weights.sum()).view(1, 1, 1, WINDOW).expand(x.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(x, row, groups=x.shape[1])
    return F.conv2d(rows, row.transpose(2, 3), groups=x.shape[1])


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the finite differences along rows and columns of (B, C, H, W)."""
    error = output.float() - target.float()
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def fourier_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean modulus of the difference of the orthonormal spectra of (B, C, H, W): every frequency counts the same.

    What L1 sees of a lost texture is a little everywhere; here it stands out, where it belongs (Fuoli et al., 2021).
    """
    with torch.autocast(output.device.type, enabled=False):
        spectrum: Tensor = torch.fft.rfft2(output.float() - target.float(), norm="ortho")
        return spectrum.abs().mean()
