"""The two streams of stage 3: shares, weights, alignment, and what depends on what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.crop import CropMixture
from training.data.noise import NoiseLaw, NoisePopulation
from training.data.pair import NoisyPairs, PairConfig
from training.data.source import Source, SourceConfig
from training.data.stream import Mixture, RealPair, StreamConfig, Streams

STEPS, BATCH = 50, 8
PARAMETERS = np.array([0.0, 0.01, 0.0, 0.4, 0.3, 0.1, 0.0], np.float32)


class Photograph(Source):
    """One image in memory."""

    def __init__(self) -> None:
        self.config = SourceConfig("made", ".")
        self.paths = []
        self.planes = [(np.random.default_rng(0).random((80, 90), np.float32), 1.0)]


Make = Callable[..., Streams]


@pytest.fixture
def streams(tmp_path: Path) -> Make:
    """Makes both streams, of one photograph and one real image."""
    ramp = np.arange(64 * 70, dtype=np.float32).reshape(64, 70)
    for name, plane in (("noisy", ramp), ("restored", ramp + 5000)):
        np.save(tmp_path / f"{name}.npy", plane)
    pair = RealPair(tmp_path / "noisy.npy", tmp_path / "restored.npy", PARAMETERS)

    def make(config: StreamConfig, seed: int = 0) -> Streams:
        population = NoisePopulation(lowest=0.05, highest=0.1)
        synthetic = NoisyPairs(CropMixture([Photograph()]), PairConfig(crop=32), seed, BATCH, STEPS, population)
        return Streams(synthetic, [pair], config)

    return make


def real(sample: dict[str, torch.Tensor]) -> bool:
    return bool(sample["clean"].max() > 2)


def test_shares_and_weights_are_the_published_ones(streams: Make) -> None:
    samples = [streams(StreamConfig())[number] for number in range(STEPS * BATCH)]
    assert sum(real(s) for s in samples) == pytest.approx(STEPS * BATCH / 8, rel=0.3)
    for number, sample in enumerate(samples):
        expected = (0.02 if number >= 0.8 * STEPS * BATCH else 0.1) if real(sample) else 1.0
        assert float(sample["weight"]) == pytest.approx(expected)


def test_real_pairs_stay_aligned_in_every_orientation(streams: Make) -> None:
    data = streams(StreamConfig(real_share=1.0))
    for number in range(40):
        sample = data[number]
        torch.testing.assert_close(sample["clean"], sample["image"] + 5000)
        upright = abs(float(sample["image"][0, 1, 0] - sample["image"][0, 0, 0])) == 70  # one row down in the image
        expected = PARAMETERS if upright else PARAMETERS[[0, 1, 2, 4, 3, 6, 5]]
        torch.testing.assert_close(sample["told"], torch.from_numpy(expected))


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_either_stream_alone(streams: Make, share: float, expected: bool) -> None:
    data = streams(StreamConfig(real_share=share))
    assert {real(data[number]) for number in range(60)} == {expected}
    weights = [float(data[number]["weight"]) for number in (0, STEPS * BATCH - 1)]
    assert weights == pytest.approx([0.1 if expected else 1.0] * 2)


def test_a_sample_depends_on_its_seed_and_number_alone(streams: Make) -> None:
    one, two, other = streams(StreamConfig()), streams(StreamConfig()), streams(StreamConfig(), seed=1)
    for number in (0, 7, 123):
        _ = two[number + 1]
        assert all(torch.equal(one[number][key], two[number][key]) for key in one[number])
    assert any(not torch.equal(one[n]["image"], other[n]["image"]) for n in range(4))


def test_streams_refuse_shares_that_are_none() -> None:
    with pytest.raises(ValueError, match="real_share"):
        StreamConfig(real_share=1.2)


def test_a_mixture_draws_from_both_populations() -> None:
    class Constant:
        def __init__(self, offset: float) -> None:
            self.offset = offset

        def draw(self, rng: np.random.Generator) -> NoiseLaw:
            return NoiseLaw(0.0, self.offset)

    rng = np.random.default_rng(0)
    drawn = [Mixture(Constant(1.0), Constant(2.0), 0.25).draw(rng).offset for _ in range(2000)]
    assert np.mean(np.array(drawn) == 1.0) == pytest.approx(0.25, abs=0.04)
