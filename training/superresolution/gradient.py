"""Every loss term's gradient on a generator: `python -m training.superresolution.gradient BUNDLE IMAGES`.

One row for each term of the ensemble, on a crop of each image reduced by the bundle's scale: its weight, its weighted
value, and the L2 norm of its own gradient over all weights of the generator. A norm of 0 is a term that teaches
nothing. The discriminator is a new one; how that of a run pulled is in the run's log.csv (`gradient_TERM`).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.errors import BundleError
from training.data.crop import random_crop
from training.data.source import Source, SourceConfig, list_images
from training.degradation.bicubic import reduce
from training.duel import gradient_norms
from training.loop import Batch
from training.objective import as_batch
from training.reexport import trained
from training.start import start_bundle
from training.superresolution.adversary import build_discriminator
from training.superresolution.discriminator import DiscriminatorConfig
from training.superresolution.ensemble import EnsembleConfig, ensemble_terms


@dataclass(frozen=True)
class TermGradient:
    """One term of the loss and how it pulls."""

    name: str
    weight: float
    value: float  # weighted
    norm: float  # of the weighted term's gradient


def term_gradients(generator: nn.Module, critic: nn.Module, batch: Batch, config: EnsembleConfig) -> list[TermGradient]:
    """Every term of the ensemble on a batch of "image" and "clean". Raises ValueError for a wrong feature file."""
    restored = generator(batch["image"])
    terms = ensemble_terms(restored, batch["clean"], config, config.read_features(), critic(restored))
    norms = gradient_norms(terms, generator)
    return [
        TermGradient(name, getattr(config, name), float(term.detach()), float(norms[name]))
        for name, term in terms.items()
    ]


def reduced_batch(folder: Path, scale: int, side: int, count: int) -> Batch:
    """One crop (side, side) of each of the first images of a folder, and the same `scale` times smaller."""
    source = Source(SourceConfig("images", "."), folder, list_images(folder)[:count] or None)
    rng = np.random.default_rng(0)
    clean = torch.cat([as_batch(random_crop(source.plane(i, rng), side, rng)) for i in range(len(source))])
    return {"image": torch.stack([reduce(each, scale) for each in clean]), "clean": clean}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.superresolution.gradient", description=__doc__)
    parser.add_argument("bundle", help="a super-resolution bundle: NAME@VERSION, or its folder")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--side", type=int, default=96, help="of a crop, a multiple of the scale")
    parser.add_argument("--count", type=int, default=8, help="images at most")
    parser.add_argument("--features", default="", help="file of VGG-19's weights, for the perceptual term")
    parser.add_argument("--features-sha256", default="", help="its SHA-256")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Prints the table; returns the exit status, 1 where a term has no gradient."""
    options = parse(argv)
    bundle = start_bundle(options.bundle)
    scale = bundle.manifest.scale
    if bundle.manifest.task != "superresolve" or options.side % scale:
        raise ValueError(f"{bundle.reference}: a super-resolver, and a --side that its scale divides, are needed")
    rows = term_gradients(
        trained(bundle, "restore"),
        build_discriminator(DiscriminatorConfig(), seed=0),
        reduced_batch(options.images, scale, options.side, options.count),
        EnsembleConfig(features=options.features, features_sha256=options.features_sha256),
    )
    print(f"{'term':12} {'weight':>8} {'value':>10} {'gradient':>10}")
    for row in rows:
        print(f"{row.name:12} {row.weight:8g} {row.value:10.3g} {row.norm:10.3g}")
    return 0 if all(row.norm > 0 for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (BundleError, OSError, ValueError) as error:
        sys.exit(f"gradient: {error}")
