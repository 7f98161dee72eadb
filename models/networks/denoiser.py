"""From a network that predicts noise to the `restore` graph of a denoise bundle.

A network is told the noise's level and its colour. Three parameters are the level, on the unit
scale: slope a, offset b and floor c, where the noise variance at signal x is max(a x + b, c)
(Poisson-Gaussian, Foi et al. 2008, with a floor where the line would reach zero). Four are the
colour: the noise's correlation at one and two pixels' distance down and across. An exported estimate
tells an eighth, the mean of the whole image: told the same pedestal, tiles of an image add up to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVEL = ["variance_slope", "variance_offset", "variance_floor"]
COLOUR = ["correlation_down_1", "correlation_across_1", "correlation_down_2", "correlation_across_2"]
PARAMETERS = LEVEL + COLOUR
PEDESTAL = "pedestal"
CONDITIONS = 1 + len(COLOUR)  # planes that a network is told of: level, and level times each correlation
LIMIT = 5.0  # no pixel is changed by more than this many standard deviations of the noise told


def local_mean(image: Tensor) -> Tensor:
    """5x5 box mean of image (B, 1, H, W), edges replicated: the cheap signal estimate."""
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, (1, 5), stride=1), (5, 1), stride=1)


def noise_map(image: Tensor, parameters: Tensor) -> Tensor:
    """Standard deviation of the noise per pixel, (B, 1, H, W), for parameters (B, 7)."""
    slope, offset, floor = (parameters[:, i, None, None, None] for i in range(len(LEVEL)))
    variance = torch.maximum(slope * local_mean(image) + offset, floor)
    return torch.sqrt(F.relu(variance))


def condition_of(noise: Tensor, parameters: Tensor) -> Tensor:
    """What a network is told, (B, 5, H, W): the noise map (B, 1, H, W), and that times each correlation.

    The product makes the colour scale with the image, as the level does: gain changes nothing else.
    """
    colour = parameters[:, len(LEVEL) : len(PARAMETERS), None, None]
    return torch.cat([noise, noise * colour], dim=1)


class PedestalEstimate(nn.Module):
    """An estimator (B, 1, H, W) -> (B, 7) that tells the mean of the image, too: (B, 8)."""

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([self.estimator(image), image.mean(dim=(2, 3))], dim=1)


class Denoiser(nn.Module):
    """Wraps a noise predictor f(image (B, 1, H, W), condition (B, 5, H, W)) -> noise (B, 1, H, W).

    The predicted noise is limited to +-5 standard deviations of the noise that the network is told
    of, so the image comes back unchanged, to the bit, at strength 0 or where there is no noise, and
    no pixel can move further than noise could have moved it. Positively homogeneous if f is.
    """

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, image: Tensor, parameters: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 1, H, W), parameters (B, 7 or 8), strength (B,) -> restored, noise map, (B, 1, H, W)."""
        noise = noise_map(image, parameters)
        told = noise * strength[:, None, None, None]
        pedestal = [parameters[:, len(PARAMETERS), None, None, None]] if parameters.shape[1] > len(PARAMETERS) else []
        predicted = self.predictor(image, condition_of(told, parameters), *pedestal)
        bound = LIMIT * told
        return image - torch.maximum(torch.minimum(predicted, bound), -bound), noise
