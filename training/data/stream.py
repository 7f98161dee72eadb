"""The two streams of stage 3: real noisy images with their preliminary answer (S1), and clean ones made noisy (S2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.data.crop import cut, draw_place
from training.data.noise import NoiseLaw, Plane, Population
from training.data.pair import NoisyPairs
from training.seeds import sample_generator

STREAM_SEED = 7_000_003  # apart from the seeds of the pairs themselves
TURNED = [0, 1, 2, 4, 3, 6, 5]  # the parameters of a noise whose rows have become columns
LAST_PART = 0.8  # of the steps, after which the real stream counts less


@dataclass(frozen=True)
class RealPair:
    """A noisy plane (H, W), what stage 1 made of it, and the parameters (7,) of its noise.

    The planes are .npy files, opened for each sample: a hospital's images need not fit into memory.
    """

    noisy: Path
    restored: Path
    parameters: Plane

    def crop(self, side: int, rng: np.random.Generator) -> tuple[Plane, Plane, Plane]:
        """The same place (side, side) of both planes, and the noise's parameters as they are in its orientation."""
        noisy, restored = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (self.noisy, self.restored))
        place = draw_place(noisy.shape, side, rng)
        parameters = self.parameters[TURNED] if place.turns % 2 else self.parameters
        return cut(noisy, side, place), cut(restored, side, place), parameters


@dataclass(frozen=True)
class Mixture:
    """Two populations: the learned one, and a broad one that keeps other levels and colours known."""

    learned: Population
    broad: Population
    learned_share: float

    def draw(self, rng: np.random.Generator) -> NoiseLaw:
        return (self.learned if rng.random() < self.learned_share else self.broad).draw(rng)


@dataclass(frozen=True)
class StreamConfig:
    """How the streams are mixed (the published ratio is 1 to 7, with weights of 0.1 and 1; Wu et al., 2020)."""

    real_share: float = 0.125  # of the samples; 0: S2 alone, 1: S1 alone
    real_weight: float = 0.1  # of a real sample's loss, beside 1
    last_real_weight: float = 0.02  # in the last fifth of the steps: stage 1's blur must not be learned

    def __post_init__(self) -> None:
        if not 0 <= self.real_share <= 1 or self.real_weight <= 0 or self.last_real_weight < 0:
            raise ValueError("streams: 0 <= real_share <= 1, real_weight > 0 and last_real_weight >= 0 are needed")


@dataclass(eq=False)
class Streams(Dataset[dict[str, Tensor]]):
    """S1 and S2 in one dataset; sample n depends on (seed, n) alone."""

    synthetic: NoisyPairs
    real: list[RealPair]
    config: StreamConfig

    def __len__(self) -> int:
        return len(self.synthetic)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        step, index = divmod(number, self.synthetic.batch)
        rng = sample_generator(self.synthetic.seed + STREAM_SEED, step, index)
        if rng.random() >= self.config.real_share:
            return self.synthetic[number] | {"weight": torch.tensor(1.0)}
        late = step >= LAST_PART * self.synthetic.steps
        # Alone, S1 is the whole of the loss, and its weight is no more than a factor.
        weight = self.config.last_real_weight if late and self.config.real_share < 1 else self.config.real_weight
        return self.real_sample(rng) | {"weight": torch.tensor(weight, dtype=torch.float32)}

    def real_sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """A crop of a noisy image, its preliminary answer as the target."""
        pair = self.real[int(rng.integers(len(self.real)))]
        noisy, restored, parameters = pair.crop(self.synthetic.config.crop, rng)
        return {
            "image": torch.from_numpy(noisy)[None],
            "clean": torch.from_numpy(restored)[None],
            "parameters": torch.from_numpy(parameters),
            "told": torch.from_numpy(parameters),
        }
