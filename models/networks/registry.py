"""Every network by name: an explicit list, one line per network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from models.networks.blimsr import BliMSR
from models.networks.blind_spot import DilatedBlindSpot, LightBlindSpot
from models.networks.cnn_estimate import CnnEstimate
from models.networks.dynamic import DynamicResidual
from models.networks.nlsa_upscaler import NLSAUpscaler
from models.networks.noise_level import NoiseLevel
from models.networks.self_similarity import SelfSimilarBlindSpot
from models.networks.ssformer import SSFormer
from models.networks.ssformer_upscaler import SSFormerUpscaler
from models.networks.superresolution import ResidualUpscaler
from models.networks.swinir import SwinIR
from models.networks.unet import NoiseMapUNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "blimsr": BliMSR,
    "cnn-est": CnnEstimate,
    "dbsn": DilatedBlindSpot,
    "dbsn-light": LightBlindSpot,
    "dran": DynamicResidual,
    "nlsa-upscaler": NLSAUpscaler,
    "noise-level": NoiseLevel,
    "noise-map-unet": NoiseMapUNet,
    "residual-upscaler": ResidualUpscaler,
    "ss-bsn": SelfSimilarBlindSpot,
    "ssformer": SSFormer,
    "ssformer-upscaler": SSFormerUpscaler,
    "swinir-light": SwinIR,
}


def build_network(name: str, options: dict[str, Any]) -> nn.Module:
    """Constructs a network by name. Raises ValueError for an unknown name, listing the known ones, or options."""
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; known: {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[name](**options)
    except (TypeError, KeyError) as error:
        raise ValueError(f"network {name}: options {options}: {error}") from error
