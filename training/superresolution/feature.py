"""VGG-19's convolutions as a measure of likeness, where its weights are at hand; they are never downloaded.

The published perceptual loss compares features before the activation (Ledig et al., 2017; Wang et al., 2018). In BliMSR
torchvision's ReLU, which works in place, overwrote them, and images came in unnormalised; neither happens here.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)  # Simonyan and Zisserman, 2015
SHARES = (0.5, 0.25, 0.125, 0.0625, 0.0625)  # of conv1_2, 2_2, 3_4, 4_4, 5_4 (BliMSR)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class Vgg19(nn.Module):
    """Maps gray images (B, 1, H, W), unit scale, from 16x16 up, to the last features of each of its five stages.

    Its convolutions are named as in the file that is commonly handed round: `features.0.weight` to `features.34.bias`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps, before = [], 3
        for stage in WIDTHS:
            for width in stage:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=False)]
                before = width
            self.taps.append(len(layers) - 2)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[: self.taps[-1] + 1])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, found = (image - self.mean) / self.deviation, []  # gray becomes three equal channels
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(x)
        return found


def perceptual_loss(network: Vgg19, output: Tensor, target: Tensor) -> Tensor:
    """Weighted mean absolute difference of the features of (B, 1, H, W), in float32."""
    with torch.autocast(output.device.type, enabled=False):
        with torch.no_grad():
            wanted = network(target.float())
        pairs = zip(network(output.float()), wanted, SHARES, strict=True)
        return torch.stack([share * F.l1_loss(found, goal) for found, goal, share in pairs]).sum()


def read_features(path: str, sha256: str) -> Vgg19:
    """VGG-19 from a local file (a PyTorch state dict), frozen.

    Raises ValueError where the file is missing, is not the one of that SHA-256, or holds another network.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"ensemble.features: {path} cannot be read; leave it empty to do without") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256.lower():
        raise ValueError(f"ensemble.features_sha256: {Path(path).name} has {found}; give that, if you trust the file")
    network = Vgg19()
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("classifier.")})
    except (AttributeError, EOFError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"ensemble.features: {Path(path).name} does not hold VGG-19's convolutions") from error
    return network.eval().requires_grad_(False)
