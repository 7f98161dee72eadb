"""The figure of a learned degradation: kernels, noise, and images it made beside real ones, in the report's look."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft2, ifft2

from training.data.noise import Plane
from training.degradation.learned import LearnedDegradation
from training.degradation.measure import DRAWS, draw, draw_crop
from training.report.figure import COLOURS, styled, svg
from training.seeds import sample_generator

Array = NDArray[np.float64]

SHOWN = 4  # plots of a row
REACH = 5  # lags of the autocorrelation
FREQUENCIES = 64
STREAM = 97_000_000


def draws_figure(
    learned: LearnedDegradation,
    high: Sequence[Plane],
    low: Sequence[Plane],
    seed: int,
    true_kernel: Array | None = None,
) -> str:
    """An <svg> element: single and mean kernel, its spectrum (beside that of a known one), noise, real and made crops.

    Planes (H, W) on the unit scale; the crops are cut from them. Equal arguments give equal bytes.
    """
    return styled(lambda: svg(build_figure(learned, high, low, seed, true_kernel), "learned degradation"))()


def draws_png(
    learned: LearnedDegradation,
    high: Sequence[Plane],
    low: Sequence[Plane],
    seed: int,
    true_kernel: Array | None = None,
) -> bytes:
    """The same as a PNG file on white."""

    def save() -> bytes:
        buffer = io.BytesIO()
        figure = build_figure(learned, high, low, seed, true_kernel)
        figure.savefig(buffer, format="png", dpi=110, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    return styled(save)()


def build_figure(
    learned: LearnedDegradation, high: Sequence[Plane], low: Sequence[Plane], seed: int, true_kernel: Array | None
) -> Any:
    """A matplotlib figure of three rows of four: kernels, noise, real crops; below them the made ones."""
    from matplotlib.figure import Figure

    draws = draw(learned.generator, high, seed)
    figure = Figure(figsize=(8.4, 8.8), layout="constrained")
    plots = figure.subplots(4, SHOWN)
    show_kernels(plots[0], draws.kernels, learned.scale, true_kernel)
    show_noise(plots[1], draws.noise)
    real = real_crops(low, draws.low.shape[1], seed)
    for row, title, images in ((plots[2], "real", real), (plots[3], "made", draws.low)):
        for plot, image in zip(row, telling(images), strict=True):
            picture(plot, image, title, *np.percentile(image, [0.5, 99.5]))
    return figure


def telling(images: Plane) -> Plane:
    """The four images of (N, H, W) with the most to see."""
    return images[np.sort(np.argsort(-images.std(axis=(1, 2)), kind="stable")[:SHOWN])]


def real_crops(planes: Sequence[Plane], side: int, seed: int) -> Plane:
    """As many crops of real planes as there are draws, (64, side, side); of planes that are large enough."""
    rng = sample_generator(seed + STREAM, 0, 0)
    side = min(side, max(min(plane.shape) for plane in planes))
    large = [plane for plane in planes if min(plane.shape) >= side]
    return np.stack([draw_crop(large, side, rng) for _ in range(DRAWS)])


def show_kernels(plots: Any, kernels: Array, scale: int, true_kernel: Array | None) -> None:
    """Two kernels, the mean of all, and spectra along the axes."""
    mean = kernels.mean(0)
    for plot, kernel, title in zip(plots, (*kernels[:2], mean), ("kernel", "another", "mean kernel"), strict=False):
        picture(plot, kernel, title, 0.0, float(mean.max()))
    plot = plots[SHOWN - 1]
    frequency = np.linspace(0, 0.5, FREQUENCIES)
    for kernel, colour, name in ((mean, COLOURS[0], "learned"), (true_kernel, COLOURS[1], "true")):
        if kernel is not None:
            for axis, line in ((1, "-"), (0, "--")):
                label = f"{name}, {'down' if axis else 'across'}"
                plot.plot(frequency, transfer(kernel.sum(axis), frequency), line, color=colour, label=label)
    plot.axvline(0.5 / scale, color=COLOURS[7], linewidth=0.8)
    plot.set(title="its spectrum", xlabel="cycles per high-res. pixel", ylim=(-0.05, 1.05))
    plot.legend(fontsize=6)


def transfer(profile: Array, frequency: Array) -> Array:
    """Real part of the transfer function of a profile (K,) about its middle."""
    place = np.arange(len(profile)) - (len(profile) - 1) / 2
    return np.asarray(np.cos(2 * np.pi * frequency[:, None] * place) @ profile)


def show_noise(plots: Any, noise: Array) -> None:
    """Two noise fields, their autocorrelation, and the levels of all draws."""
    reach = 3 * float(noise.std())
    for plot, field in zip(plots[:2], noise, strict=False):
        picture(plot, field, "noise", -reach, reach)
    found, side = autocorrelation(noise), REACH + 0.5
    plots[2].grid(visible=False)
    plots[2].imshow(found, cmap="RdBu_r", vmin=-1, vmax=1, extent=(-side, side, side, -side), interpolation="nearest")
    plots[2].set(title="its autocorrelation", xticks=[-4, 0, 4], yticks=[-4, 0, 4])
    plots[3].hist(255 * noise.std(axis=(1, 2)), 12, color=COLOURS[0], alpha=0.8)
    plots[3].set(title="level of the draws", xlabel="standard deviation, 255ths")


def autocorrelation(noise: Array) -> Array:
    """Mean correlation (11, 11) of fields (N, H, W), 1 in the middle."""
    rows, columns = noise.shape[1:]
    shape = (rows + REACH, columns + REACH)  # no lag wraps around
    power = np.abs(fft2(noise, s=shape, axes=(1, 2))) ** 2
    lags = np.arange(-REACH, REACH + 1)
    sums = ifft2(power.mean(0)).real[lags[:, None], lags[None, :]]
    sums /= np.outer(rows - np.abs(lags), columns - np.abs(lags))
    return np.asarray(sums / sums[REACH, REACH])


def picture(plot: Any, image: NDArray[Any], title: str, low: float, high: float) -> None:
    plot.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    plot.grid(visible=False)
    plot.set(title=title, xticks=[], yticks=[])
