"""Stage 1 of a pipeline run as a restorer: what a blind-spot network alone makes of an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.networks.denoiser import noise_map
from models.networks.registry import build_network
from training.data.noise import NoiseLaw, Plane
from training.noise.correlation import REACH, measure_correlation, stride_of
from training.noise.spectrum import correlation_of_kernel
from training.pipeline.config import read_run_config
from training.pipeline.inference import predict
from training.pipeline.learner import NoiseFunction, Preliminary, Standardised
from training.pipeline.noise_table import NoiseTable
from training.pipeline.posterior import posterior_mean
from training.pipeline.record import ImageSet, NoisyImage
from training.pipeline.restoration import Restoration, restore

WEIGHTS = Path("preliminary", "weights.pt")


class PreliminaryRestorer:
    """Runs the blind-spot network of OUT/preliminary on images that it was not trained on.

    Blind, an image is treated as stage 1 treats one of its test images: its noise law is fitted to it.
    Told the law, that is used. The pixel-shuffle stride follows from the noise correlation measured on
    the image, as stage 0 measures it on a set; no larger than the run's own for denoising.
    """

    def __init__(self, out: Path) -> None:
        self.config = read_run_config(out).preliminary
        state = torch.load(out / WEIGHTS, map_location="cpu", weights_only=True)
        network = Standardised(build_network(self.config.network, self.config.options), 0.0, 1.0)
        table = state.get("noise.initial")
        self.model = Preliminary(network, NoiseFunction() if table is None else NoiseTable(torch.ones_like(table)))
        self.model.load_state_dict(state)
        self.model.eval().requires_grad_(False)

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        """The posterior mean (H, W)."""
        del eight_bit  # nothing is encoded on the way
        if law is None:
            return self.blind(plane).image
        noisy = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
        stride = min(set_of(plane).stride, self.config.inference_stride)
        mean, model_variance = predict(self.model.network, noisy, stride, self.config.tile)
        noise = noise_map(mean, torch.from_numpy(law.parameters)[None])
        restored: Plane = posterior_mean(noisy, mean, model_variance, noise**2)[0, 0].numpy()
        return restored

    def noise_level(self, plane: Plane) -> float:
        """The level at the image's median signal, as the noise table has it."""
        return self.blind(plane).row.level

    def blind(self, plane: Plane) -> Restoration:
        """What stage 1 makes of a plane."""
        rows, columns = plane.shape
        image = NoisyImage("", "", "", "", "", "", "", "test", rows, columns, low=0.0, high=1.0)
        return restore(self.model, image, np.ascontiguousarray(plane), set_of(plane), None, self.config)


def set_of(plane: Plane) -> ImageSet:
    """What stage 0 would say of the plane as a set of its own; white noise where it has too few flat patches."""
    found = measure_correlation([plane])
    correlation = correlation_of_kernel(None) if found is None else found
    lag1 = (float(correlation[REACH + 1, REACH]), float(correlation[REACH, REACH + 1]))
    return ImageSet("OT", 1, 0.0, 1.0, correlation.tolist(), lag1, stride_of(correlation)[0])
