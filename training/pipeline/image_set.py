"""What the images of one set share: their unit scale, and the colour of their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.noise.correlation import LOWEST_SNR, REACH, measure_correlation, stride_of
from training.pipeline.intake import Frame, SetRule
from training.pipeline.record import ImageSet, NoisyImage, read_plane

CT_WINDOW = (-160.0, 240.0)  # HU
PERCENTILES = (0.005, 0.995)
MAGNITUDE = "MR"
FEW = 10  # images


@dataclass(frozen=True)
class Scale:
    """Real values that map to 0 and 1, and whether the images are magnitudes with Rician noise."""

    low: float
    high: float
    rician: bool


def scale_of(frames: Sequence[Frame], rule: SetRule) -> Scale:
    """The unit scale of a set: the rule's window, CT's, or the percentiles 0.5 and 99.5 of all images together.

    Magnitude images keep their 0, without which noise would not be Rician.
    """
    pooled = np.concatenate([frame.quantiles for frame in frames])
    rician = frames[0].modality == MAGNITUDE and bool(pooled.min() >= 0)
    if rule.window is not None:
        return Scale(*rule.window, rician)
    if all(frame.hounsfield for frame in frames):
        return Scale(*CT_WINDOW, rician)
    low, high = (float(value) for value in np.quantile(pooled, PERCENTILES))
    low = 0.0 if rician else low
    if high <= low:  # nearly constant images: all that varies lies in the tails
        low, high = float(pooled.min()), float(pooled.max())
    return Scale(low, high, rician)


def measure_sets(
    out: Path,
    images: Sequence[NoisyImage],
    frames: dict[str, list[Frame]],
    scales: dict[str, Scale],
    images_max: int,
) -> dict[str, ImageSet]:
    """The record of every set. A set too small or too structured to be measured borrows its modality's correlation."""
    found = {name: correlation_of(out, images, name, scales[name], images_max) for name in frames}
    records = {}
    for name, members in frames.items():
        modality, correlation = members[0].modality, found[name]
        warnings = warnings_of(members)
        if correlation is None:
            kin = [c for other, c in found.items() if c is not None and frames[other][0].modality == modality]
            correlation = np.mean(kin, axis=0) if kin else white()
            source = f"that of the other {modality} sets" if kin else "white noise"
            warnings.append(f"no flat regions with noise were found: its correlation is taken to be {source}")
        stride, enough = stride_of(correlation)
        if not enough:
            warnings.append("noise is correlated further than 5 pixels: stage 1 will leave some of it")
        records[name] = ImageSet(
            modality=modality,
            images=len(members),
            low=scales[name].low,
            high=scales[name].high,
            correlation=[[round(float(value), 4) for value in row] for row in correlation],
            lag1=(round(float(correlation[REACH + 1, REACH]), 4), round(float(correlation[REACH, REACH + 1]), 4)),
            stride=stride,
            rician=scales[name].rician,
            warnings=tuple(warnings),
        )
    return records


def correlation_of(
    out: Path, images: Sequence[NoisyImage], name: str, scale: Scale, images_max: int
) -> NDArray[np.float64] | None:
    """Noise correlation (11, 11) of a set; magnitude images are measured where they are bright, if that is enough."""
    members = [image for image in images if image.set == name]
    chosen = np.unique(np.linspace(0, len(members) - 1, min(images_max, len(members))).astype(int))
    planes = [read_plane(out, members[i].file) for i in chosen]
    bright = measure_correlation(planes, LOWEST_SNR) if scale.rician else None
    return measure_correlation(planes) if bright is None else bright


def warnings_of(frames: Sequence[Frame], *, noise: bool = True) -> list[str]:
    """What a person should know of a set's images; with `noise`, of those whose noise is learned."""
    warnings = []
    if noise and len(frames) < FEW:
        warnings.append(f"{len(frames)} images only: the noise found may not be that of the scanner's other images")
    if colour := sum(frame.colour for frame in frames):
        warnings.append(f"images in colour: {colour}; their luminance is used")
    if lossy := sum(frame.lossy for frame in frames):
        text = f"images that went through lossy compression: {lossy}"
        warnings.append(f"{text}; some of their noise is gone" if noise else text)
    return warnings


def white() -> NDArray[np.float64]:
    correlation = np.zeros((2 * REACH + 1, 2 * REACH + 1))
    correlation[REACH, REACH] = 1.0
    return correlation
