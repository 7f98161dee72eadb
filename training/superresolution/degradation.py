"""Stage degradation: what high-resolution images are made small by, learned from low-resolution ones that match none.

Leaves the noise of the low-resolution images, the distribution of their degradation where it is asked for (algorithms
of `training.degradation`), and which mixture of both the networks are trained with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lightning.fabric import Fabric

from models.bundle import sha256_of
from training.config import build
from training.degradation.config import KINDS, BicubicConfig, BlindConfig, DegradationConfig, PdmConfig, preset
from training.degradation.degradation import Degradation, build_degradation
from training.degradation.learned import FACTS, WEIGHTS, LearnedDegradation, read_learned
from training.machine import Machine
from training.noise.population import LearnedPopulation, read_population, write_population
from training.pipeline.record import AUDIT, AuditedImage, read_json, read_plane, write_json
from training.superresolution.record import PictureAudit, of_split, read_pictures
from training.train import launch

FOLDER = Path("degradation")
MIXTURE = FOLDER / "mixture.json"  # scale, and what the networks are trained with
POPULATION = FOLDER / "population.json"
FILES = (MIXTURE, POPULATION, FOLDER / FACTS, FOLDER / WEIGHTS)
SCALES = (2, 4)
SHARES = ("pdm", "blind", "bicubic")
MEASURED = 32  # low-resolution images of one set that its noise is measured on


@dataclass(frozen=True)
class LearningConfig:
    """What the degradation is, and how it is learned."""

    scale: int = 2
    kind: str = "mix"  # pdm, blind, bicubic, or mix of all three
    shares: dict[str, float] = field(default_factory=dict)  # of pdm, blind and bicubic in a mix, in place of its own
    classical: BicubicConfig = field(default_factory=BicubicConfig)
    handmade: BlindConfig = field(default_factory=BlindConfig)
    learned: PdmConfig = field(default_factory=PdmConfig)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"--scale: {self.scale} is neither 2 nor 4")
        if self.kind not in KINDS:
            raise ValueError(f"--degradation: {self.kind!r} is none of {', '.join(KINDS)}")
        if unknown := set(self.shares) - set(SHARES):
            raise ValueError(f"degradation.shares: {sorted(unknown)[0]!r} is none of {', '.join(SHARES)}")
        if self.shares and self.kind != "mix":
            raise ValueError(f"degradation.shares: only a mix has shares, and --degradation is {self.kind}")
        self.mixture.learned.side(self.scale)

    @property
    def mixture(self) -> DegradationConfig:
        """The same as `training.degradation` knows it."""
        shares = self.shares or {name: getattr(preset(self.kind), name) for name in SHARES}
        pdm, blind, bicubic = (float(shares.get(name, 0.0)) for name in SHARES)
        return DegradationConfig(bicubic, blind, pdm, self.classical, self.handmade, self.learned)


def run(out: Path, config: LearningConfig, *, noise: Path | None, seed: int, machine: Machine) -> Fabric:
    """Makes `degradation/` of a run, or goes on where the last checkpoint left it.

    `noise` is the population of a finished run of the denoiser's pipeline, which then stands for that of the
    low-resolution images. Returns the processes that worked. Raises ValueError where there is nothing to learn from.
    """
    audit, mixture = read_pictures(out), config.mixture
    fabric = launch(machine, "32-true")
    if fabric.is_global_zero:
        write_json(out / MIXTURE, {"scale": config.scale, "mixture": dataclasses.asdict(mixture)})
        population = read_population(noise) if noise else measured(out, audit) if mixture.blind else None
        if population is not None:
            write_population(out / POPULATION, population)
    if mixture.pdm:
        from training.degradation.learning import learn_degradation

        high, low = (training_files(out, images) for images in (audit.high, audit.low))
        require_low(low)
        digest = hashlib.sha256(json.dumps([dataclasses.asdict(config), seed, sha256_of(out / AUDIT)]).encode())
        learn_degradation(
            high,
            low,
            config.scale,
            config.learned,
            seed,
            out / FOLDER,
            digest.hexdigest(),
            fabric,
            workers=machine.workers,
        )
    return fabric


def findings(out: Path) -> Iterator[str]:
    """What a person should know of a degradation: what it is a mixture of, and what was found of noise and blur."""
    scale, mixture = read_mixture(out)
    total = mixture.bicubic + mixture.blind + mixture.pdm
    shares = {name: getattr(mixture, name) / total for name in SHARES}
    yield "images are made small by: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)
    population, learned = found_population(out), found_degradation(out)
    if population is not None:
        yield f"noise measured in {len(population.sets)} sets of low-resolution images"
    elif mixture.blind:
        yield "note: no noise was measured: the blind degradation draws it from a broad population"
    if learned is not None:
        yield from too_small(read_pictures(out), mixture.learned.crop, scale)
        facts = {name: value for name, value in learned.facts.items() if isinstance(value, float)}
        yield "learned: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in facts.items())


def too_small(audit: PictureAudit, crop: int, scale: int) -> Iterator[str]:
    """How many images the degradation could not be learned from."""
    for kind, images, side in (("high", audit.high, crop * scale), ("low", audit.low, crop)):
        if small := sum(min(image.rows, image.columns) < side for image in of_split(images, "train")):
            yield f"note: nothing was learned from {small} {kind}-resolution images of less than {side} x {side} pixels"


def training_files(out: Path, images: tuple[AuditedImage, ...]) -> list[Path]:
    return [out / image.file for image in of_split(images, "train")]


def require_low(low: list[Path]) -> None:
    """Raises ValueError where no low-resolution image tells what is to be learned."""
    if not low:
        raise ValueError(
            "--degradation pdm and mix are learned from low-resolution images: name their folder with --lr, "
            "or choose --degradation blind or bicubic, which need none"
        )


def measured(out: Path, audit: PictureAudit) -> LearnedPopulation | None:
    """The noise of the low-resolution images; None where there are none, or nowhere are they flat enough to tell."""
    from training.degradation.population import measure_population

    planes = {}
    for name in audit.low_sets:
        members = [image for image in of_split(audit.low, "train") if image.set == name]
        chosen = np.unique(np.linspace(0, len(members) - 1, min(MEASURED, len(members))).astype(int))
        planes[name] = [read_plane(out, members[i].file) for i in chosen]
    planes = {name: images for name, images in planes.items() if images}
    try:
        modalities = {name: record.modality for name, record in audit.low_sets.items()}
        return measure_population(planes, modalities) if planes else None
    except ValueError:  # no set has flat patches that hold noise
        return None


def read_mixture(out: Path) -> tuple[int, DegradationConfig]:
    """The scale of a run, and what its networks are trained with."""
    record = read_json(out / MIXTURE)
    return record["scale"], build(DegradationConfig, record["mixture"], MIXTURE.name)


def found_population(out: Path) -> LearnedPopulation | None:
    """The noise of the low-resolution images, if it was found."""
    return read_population(out / POPULATION) if (out / POPULATION).exists() else None


def found_degradation(out: Path) -> LearnedDegradation | None:
    """The learned degradation, if it was asked for."""
    return read_learned(out / FOLDER) if (out / FOLDER / FACTS).exists() else None


def read_degradation(out: Path) -> Degradation:
    """What the networks of a run are trained with."""
    scale, mixture = read_mixture(out)
    return build_degradation(mixture, scale, found_population(out), found_degradation(out))


def input_hashes(out: Path) -> list[str]:
    """SHA-256 of each file of the earlier stages that decides the samples of a training."""
    return [sha256_of(out / file) for file in (AUDIT, *FILES) if (out / file).exists()]
