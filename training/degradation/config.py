"""What low-resolution images are made of in training: shares of three degradations, and the options of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.data.noise import NoisePopulation
from training.duel import DuelFit

TERMS = ("adversarial", "spectrum", "shape", "level", "colour", "local_mean", "consistency")  # of the generator's loss
KINDS = ("bicubic", "blind", "pdm", "mix")


@dataclass(frozen=True)
class BicubicConfig:
    """Classical reduction: anti-aliased bicubic, exactly the field's benchmark protocol unless a share is raised."""

    area_share: float = 0.0  # of the crops: block means in place of bicubic
    noise_share: float = 0.0  # of the crops: a little white noise ...
    highest_noise: float = 2.0 / 255  # ... of a level drawn uniformly from 0 to this, unit scale
    quantise_share: float = 0.0  # of the crops: clipped to [0, 1] and rounded to 8 bits

    def __post_init__(self) -> None:
        check_shares("classical", self.area_share, self.noise_share, self.quantise_share)
        if self.highest_noise < 0:
            raise ValueError(f"classical.highest_noise: {self.highest_noise} is negative")


@dataclass(frozen=True)
class BlindConfig:
    """Hand-made degradation for medical images: one pass of blur, reduction and noise (after Wang et al., 2021).

    A width is the standard deviation of the blur along one axis in high-resolution pixels at x2, whatever the
    kernel's shape; at another scale it is multiplied by scale / 2.
    """

    narrowest: float = 0.3
    widest: float = 2.0
    isotropic_share: float = 0.5
    generalised_share: float = 0.15  # of the kernels: exp(-r^(2 beta) / 2), from peaked to flat
    generalised_beta: tuple[float, float] = (0.5, 4.0)
    plateau_share: float = 0.15  # of the kernels: 1 / (1 + r^(2 beta))
    plateau_beta: tuple[float, float] = (1.0, 2.0)
    area_share: float = 0.5  # of the reductions: block means, the others bicubic
    clean_share: float = 0.1  # of the crops: without noise
    noise: NoisePopulation = field(  # where no population was learned from real images
        default_factory=lambda: NoisePopulation(0.2 / 255, 20 / 255, coloured_share=0.5, rician_share=0.1)
    )
    clip_share: float = 0.3  # of the crops: clipped to [0, 1] ...
    quantise_share: float = 0.5  # ... and of those, rounded to 8 bits
    jpeg_share: float = 0.0  # of the crops: through JPEG. Only for photographs: DICOM is not stored so
    jpeg_quality: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        shares = (self.isotropic_share, self.area_share, self.clean_share, self.clip_share, self.quantise_share)
        shapes = (self.generalised_share, self.plateau_share, self.generalised_share + self.plateau_share)
        check_shares("handmade", *shares, *shapes, self.jpeg_share)
        if not 0 < self.narrowest <= self.widest:
            raise ValueError(f"handmade: 0 < narrowest ({self.narrowest}) <= widest ({self.widest}) is needed")
        for name in ("generalised_beta", "plateau_beta"):
            low, high = getattr(self, name)
            if not 0.25 <= low <= high:
                raise ValueError(f"handmade.{name}: {low} to {high} is no range from 0.25 upwards")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"handmade.jpeg_quality: {self.jpeg_quality} is no range within 1 to 100")


@dataclass(frozen=True)
class PdmConfig:
    """How the degradation distribution is learned from unpaired images (after Luo et al., 2022).

    The weights are of the generator's terms: the critic's judgement, and what can be measured without one.
    """

    kernel: int = 0  # rows of the kernel in high-resolution pixels, even where the scale is; 0: 16 at x2, 28 at x4
    crop: int = 48  # side of a low-resolution crop, 32 at least
    critic_features: int = 24
    adversarial: float = 0.1
    spectrum: float = 1.0  # mean power spectra of both sets
    shape: float = 0.5  # what of a kernel is no Gaussian, or not of all kernels
    level: float = 0.2  # power of the noise against that of the low-resolution images' quiet patches
    colour: float = 0.3  # its spectrum against theirs
    local_mean: float = 0.1  # what the noise adds to brightness, beyond what noise of that colour must
    consistency: float = 1.0  # reduced image against the plainly reduced one, both low-passed
    fit: DuelFit = field(
        default_factory=lambda: DuelFit(
            steps=600,
            batch=8,
            learning_rate=2e-3,
            critic_learning_rate=1e-3,
            final_learning_rate=2e-5,
            betas=(0.5, 0.99),
            hold=250,
            ema=0.99,
            gradient_norm=5.0,
            critic_every=2,
            precision="32-true",
        )
    )
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        terms = (
            self.adversarial,
            self.spectrum,
            self.shape,
            self.level,
            self.colour,
            self.local_mean,
            self.consistency,
        )
        if min(terms) < 0:
            raise ValueError("learned: weights must not be negative")
        if self.crop < 32:
            raise ValueError(f"learned.crop: {self.crop} is less than 32, on which spectra are measured")

    def side(self, scale: int) -> int:
        """Rows of the kernel. Raises ValueError where it could not be centred on a low-resolution pixel."""
        side = self.kernel or {1: 13, 2: 16, 4: 28}.get(scale, 7 * scale)
        if side % 2 != scale % 2 or side < scale:
            raise ValueError(f"learned.kernel: {side} cannot be centred at x{scale}; use an even side at x2 and x4")
        return side


@dataclass(frozen=True)
class DegradationConfig:
    """Shares of the three degradations, relative to their sum, and the options of each."""

    bicubic: float = 1.0
    blind: float = 0.0
    pdm: float = 0.0
    classical: BicubicConfig = field(default_factory=BicubicConfig)
    handmade: BlindConfig = field(default_factory=BlindConfig)
    learned: PdmConfig = field(default_factory=PdmConfig)

    def __post_init__(self) -> None:
        if min(self.bicubic, self.blind, self.pdm) < 0 or self.bicubic + self.blind + self.pdm <= 0:
            raise ValueError("degradation: bicubic, blind and pdm must not be negative, and one must be positive")


def preset(kind: str) -> DegradationConfig:
    """The configuration of a kind of degradation by name: one of `KINDS`. Raises ValueError for another name."""
    if kind not in KINDS:
        raise ValueError(f"degradation {kind!r}: there are {', '.join(KINDS)}")
    if kind == "mix":
        return DegradationConfig(bicubic=0.2, blind=0.3, pdm=0.5)
    return DegradationConfig(float(kind == "bicubic"), float(kind == "blind"), float(kind == "pdm"))


def check_shares(where: str, *shares: float) -> None:
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{where}: shares must lie between 0 and 1")
