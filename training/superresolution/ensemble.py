"""The ensemble loss of super-resolution: named terms, each with a gradient on the generator.

In BliMSR the gradient and SSIM terms were computed from detached arrays, and so taught nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from training.loss import fourier_loss, gradient_loss, ssim_loss
from training.superresolution.feature import Vgg19, perceptual_loss, read_features

PIXELWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "ssim": ssim_loss,
    "gradient": gradient_loss,
    "fourier": fourier_loss,
}


@dataclass(frozen=True)
class EnsembleConfig:
    """Weight of each term; 0 leaves it out. Published: perceptual 1, ssim 1, gradient 1, l1 0.1, adversarial 0.01.

    Those lean on the perceptual term, which holds the picture together. A feature network trained on photographs is
    seldom at hand in a hospital; without it L1 has to do that, the spectrum tells of lost texture, and SSIM and the
    gradient are held down to where each one's pull on the generator is of the size of L1's.
    """

    l1: float = 1.0
    ssim: float = 0.1
    gradient: float = 0.5
    fourier: float = 0.5
    adversarial: float = 0.01  # only where there is a discriminator; 0.005 and 0.02 trained as steadily
    perceptual: float = 0.1  # only where `features` names a file
    features: str = ""  # file of VGG-19's weights, as a PyTorch state dict
    features_sha256: str = ""

    def __post_init__(self) -> None:
        if any(getattr(self, name) < 0 for name in (*PIXELWISE, "adversarial", "perceptual")):
            raise ValueError("ensemble: weights must not be negative")
        if not any(getattr(self, name) for name in PIXELWISE):
            raise ValueError(f"ensemble: one of {', '.join(PIXELWISE)} must have a weight")
        if bool(self.features) != bool(self.features_sha256):
            raise ValueError("ensemble: features and features_sha256 belong together")

    def without_adversary(self) -> EnsembleConfig:
        """The same for a training without a discriminator."""
        return dataclasses.replace(self, adversarial=0.0)

    def read_features(self) -> Vgg19 | None:
        """The feature network, if its term is wanted and its file is named. Raises ValueError for a wrong file."""
        return read_features(self.features, self.features_sha256) if self.features and self.perceptual else None


def ensemble_terms(
    output: Tensor,
    target: Tensor,
    config: EnsembleConfig,
    features: Vgg19 | None = None,
    logits: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted terms for output and target (B, 1, H, W), unit scale, whose sum is the generator's loss.

    `logits` are the discriminator's of the output, `features` the network of the perceptual term; both may be missing,
    and their terms are then too. Everything in float32.
    """
    output, target = output.float(), target.float()
    terms = {name: loss(output, target) for name, loss in PIXELWISE.items() if getattr(config, name)}
    if features is not None and config.perceptual:
        terms["perceptual"] = perceptual_loss(features, output, target)
    if logits is not None and config.adversarial:
        terms["adversarial"] = F.softplus(-logits.float()).mean()  # cross entropy with the label "real"
    return {name: getattr(config, name) * term for name, term in terms.items()}
