"""Blind-spot networks beside the other denoisers: told the noise's law, they answer with the posterior mean."""

from __future__ import annotations

from torch import Tensor, nn

from models.networks.denoiser import noise_map
from training.loop import Batch, Objective
from training.pipeline.likelihood import exact
from training.pipeline.posterior import posterior_mean


class BlindSpotDenoiser(nn.Module):
    """Makes a blind-spot network answer as `models.networks.denoiser.Denoiser` does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, parameters: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 1, H, W), parameters (B, 7), strength (B,) -> posterior mean, noise map, (B, 1, H, W)."""
        mean, model_variance = self.network(image)
        noise = noise_map(image, parameters)
        told = noise * strength[:, None, None, None]
        return posterior_mean(image, mean, model_variance, told**2), noise


def likelihood_objective() -> Objective:
    """Learn mean and variance of a pixel from noisy images alone, given the variance of the noise."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        mean, model_variance = (x.float() for x in network(batch["image"]))
        noise_variance = noise_map(mean.detach(), batch["parameters"]) ** 2
        return exact(batch["image"] - mean, model_variance, noise_variance).mean()

    return Objective(loss, lambda network: {})
