"""The learned degradation: its networks' properties, what it is trained with, and what it leaves on disk.

The defects of the published one, each with its test: statistics of the batch, a penalty on the noise's power, a lost
batch of one, kernels that shift, pairs that need not fit.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric import Fabric
from numpy.typing import NDArray
from skimage import data as images
from torch import nn

from training.data.noise import Plane, draw_kernel
from training.degradation.bicubic import reduce_plane
from training.degradation.blind import blur, blur_kernel
from training.degradation.config import TERMS, PdmConfig
from training.degradation.critic import PatchCritic
from training.degradation.figure import draws_figure, draws_png
from training.degradation.generator import DegradationGenerator, Fake, Latents, apply_kernels
from training.degradation.judgement import box_share, consistency, level, local_mean
from training.degradation.known import REDUCTIONS, KnownDegradation
from training.degradation.learned import (
    FACTS,
    WEIGHTS,
    LearnedDegradation,
    draw_latents,
    read_learned,
    write_learned,
)
from training.degradation.learning import learn_degradation
from training.degradation.measure import centroid, second_moments
from training.degradation.spectrum import SIDE, measure_spectra, noise_power_of
from training.degradation.unpaired import UnpairedCrops
from training.noise.spectrum import correlation_of_kernel

RNG = np.random.default_rng
KNOWN = KnownDegradation(2, (1.2, 1.2), "sampling", 8 / 255)


def generator(seed: int = 0, scale: int = 2, side: int = 16, spread: float = 0.3) -> DegradationGenerator:
    """With weights that make every draw another, as training might."""
    torch.manual_seed(seed)
    made = DegradationGenerator(scale, side)
    for last in (made.kernel.gauss, made.kernel.free, made.noise.last_gain, made.noise.tail):
        nn.init.normal_(last.weight, std=spread)
    nn.init.normal_(made.noise.colour.weight, std=spread)
    return made


def latents(count: int, side: int, seed: int = 0) -> Latents:
    return draw_latents(count, (side, side), RNG(seed))


def planes(count: int = 6) -> list[Plane]:
    """Parts of photographs, 200 x 200."""
    photographs = [images.camera(), images.coins(), images.moon(), images.brick(), images.grass(), images.gravel()]
    cut = [photograph[50:250, 50:250] for photograph in photographs]
    return [(one / 255).astype(np.float32) for one in cut[:count]]


def write(folder: Path, written: list[Plane]) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.npy" for number in range(len(written))]
    for path, plane in zip(paths, written, strict=True):
        np.save(path, plane)
    return paths


@given(st.integers(0, 1000), st.sampled_from([(2, 16), (4, 28), (3, 13)]))
@settings(max_examples=20, deadline=None)
def test_kernels_blur_and_never_shift(seed: int, sizes: tuple[int, int]) -> None:
    with torch.no_grad():
        kernels, _ = generator(seed, *sizes).kernel(torch.randn(5, 3))
    assert kernels.shape == (5, sizes[1], sizes[1])
    assert float(kernels.min()) >= 0
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(5))
    for kernel in kernels.double().numpy():
        np.testing.assert_allclose(centroid(kernel), 0, atol=1e-4)
        half = (sizes[1] - 1) // 2
        middle = kernel[half : half + 2, half : half + 2].max()
        assert kernel.max() < np.e * middle  # no ghost beside an image's own


@given(st.tuples(*[st.floats(-50, 50)] * 3))
@settings(max_examples=30, deadline=None)
def test_gaussians_stay_within_what_the_grid_can_show(gauss: tuple[float, float, float]) -> None:
    """Whatever three numbers a latent gives: neither a point, nor a line, nor all of the kernel's support."""
    distance = generator().kernel.distance(torch.tensor([gauss], dtype=torch.float32))[0].double()
    kernel = torch.softmax(-distance / 2, 0).reshape(16, 16).numpy()
    widths = np.sqrt(np.linalg.eigvalsh(second_moments(kernel)))
    assert 0.3 < widths[0] <= widths[1] < 5
    assert widths[1] / widths[0] < 4


def test_direction_of_a_gaussian() -> None:
    net = generator().kernel
    for gauss, (tall, oblique) in (([0.0, 1.0, 0.0], (True, False)), ([0.0, 0.0, 1.0], (False, True))):
        kernel = torch.softmax(-net.distance(torch.tensor([gauss]))[0].double() / 2, 0).reshape(16, 16).numpy()
        found = second_moments(kernel)
        assert (found[0, 0] > 1.5 * found[1, 1]) == tall
        assert (found[0, 1] > 0.3 * found[0, 0]) == oblique


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_noise_has_mean_zero_whatever_the_weights(seed: int) -> None:
    """What a latent adds its negative takes away; the power is the network's own."""
    net, drawn = generator(seed).noise, latents(2, 12, seed)
    low = torch.rand(2, 1, 12, 12)
    noise = net(low, drawn.noise, drawn.level)
    torch.testing.assert_close(noise, -net(low, -drawn.noise, drawn.level))
    assert float(noise.detach().std()) > 0


def test_training_has_no_statistics_of_the_batch() -> None:
    """An image of a batch comes out as it does alone, in training as in evaluation; alone works."""
    made, high, drawn = generator().train(), torch.rand(3, 1, 24, 24), latents(3, 12)
    whole = made(high, drawn)
    for i in range(3):
        alone = made(high[i : i + 1], Latents(*(each[i : i + 1] for each in drawn)))
        assert alone.low.shape == (1, 1, 12, 12)
        assert alone.kernels.shape == (1, 16, 16)
        torch.testing.assert_close(alone.low, whole.low[i : i + 1])
    torch.testing.assert_close(made.eval()(high, drawn).low, whole.low)
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in made.modules())


@pytest.mark.parametrize(("scale", "side"), [(2, 8), (4, 12), (3, 9)])
def test_reduction_is_the_weighted_sum_around_each_low_resolution_pixel(scale: int, side: int) -> None:
    rng = RNG(0)
    high, kernel = rng.random((10 * scale, 12 * scale)), rng.random((side, side))
    kernel = kernel + kernel[::-1, ::-1]
    found = apply_kernels(torch.from_numpy(high)[None, None], torch.from_numpy(kernel)[None], scale)[0, 0].numpy()
    assert found.shape == (10, 12)
    row, column, margin = 5, 6, (side - scale) // 2
    top, left = row * scale - margin, column * scale - margin
    expected = (high[top : top + side, left : left + side] * kernel).sum()
    assert found[row, column] == pytest.approx(expected)


def test_kernel_that_cannot_be_centred_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be centred"):
        DegradationGenerator(2, 21)


def test_power_of_the_noise_is_free_and_its_local_mean_is_not() -> None:
    """The published term was the mean square of the noise itself."""
    white = torch.randn(8, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    share = box_share(correlation_of_kernel(None))
    for factor in (1e-3, 1.0, 10.0):
        assert float(local_mean(factor * white, share)) < 0.02
    brightened = white + torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    assert float(local_mean(brightened, share)) > 1
    kernel = draw_kernel(RNG(3))
    assert box_share(correlation_of_kernel(kernel)) > 1.5 * share  # slow noise may be slow


def test_level_wants_the_noise_of_its_law() -> None:
    """Variance a s + b, in every part of the image: half dark, half bright."""
    reduced = torch.cat([torch.zeros(4, 1, 48, 24), torch.ones(4, 1, 48, 24)], 3)
    law, white = torch.tensor([[3e-3, 1e-3]] * 4), torch.randn(4, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    right, flat = torch.sqrt(3e-3 * reduced + 1e-3) * white, torch.sqrt(torch.tensor(2.5e-3)) * white
    errors = [float(level(Fake(reduced, reduced, noise, *[white[0]] * 3), law)) for noise in (right, flat, 2 * right)]
    assert errors[0] < 0.05
    assert min(errors[1:]) > 0.3


def test_consistency_is_for_content_not_for_blur_or_noise() -> None:
    high = torch.from_numpy(planes(1)[0])[None, None]
    sharp, wide = (torch.from_numpy(KnownDegradation(2, (w, w), noise=0.0).kernel).float()[None] for w in (0.6, 1.6))
    fit = max(float(consistency(apply_kernels(high, kernel, 2), high)) for kernel in (sharp, wide))
    shifted = float(consistency(apply_kernels(high.roll(4, 3), sharp, 2), high))
    other = float(consistency(apply_kernels(high.flip(3), sharp, 2), high))
    assert fit < 0.2 * shifted < 0.2 * other


@torch.no_grad()
def test_critic_judges_neither_brightness_nor_size() -> None:
    torch.manual_seed(0)
    critic, image = PatchCritic(0.05, 8).eval(), torch.rand(2, 1, 40, 33)
    assert critic(image).shape == (2, 1, 34, 27)
    torch.testing.assert_close(critic(image + 0.3), critic(image), atol=1e-4, rtol=0)
    assert float((critic(0.5 * image) - critic(image)).abs().mean()) > 1e-3


def test_spectrum_of_degraded_noise_follows_the_law() -> None:
    """White images through a kernel, reduced, plus noise: measured power is what `degraded` says plus the noise's."""
    rng, known = RNG(0), KnownDegradation(2, (1.0, 0.6), "sampling", 0.3)
    high = [rng.standard_normal((256, 256)).astype(np.float32) for _ in range(8)]
    spectra = measure_spectra(high, [known.degrade(plane, rng) for plane in high], 2)
    expected = spectra.degraded(torch.from_numpy(known.kernel)[None]) + known.noise**2
    ratio = (spectra.low / expected)[spectra.used]
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
    assert float((ratio - 1).abs().max()) < 0.2


def test_power_of_noise_is_its_variance() -> None:
    noise = 0.2 * torch.randn(16, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    power = noise_power_of(noise)
    assert power.shape == (SIDE, SIDE)
    assert float(power.mean()) == pytest.approx(0.04, rel=0.03)


def test_sets_without_a_large_image_are_refused(tmp_path: Path) -> None:
    small = write(tmp_path / "small", [np.zeros((40, 40), np.float32)])
    with pytest.raises(ValueError, match="96 x 96 pixels"):
        learn(small, small, tmp_path / "run", PdmConfig())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", [2, 4])
def test_known_kernel_is_the_whole_path(reduction: str, scale: int) -> None:
    """Blur and reduction in one step equal the two steps; the moment is the sum of theirs."""
    known = KnownDegradation(scale, (1.5, 1.0), reduction, 0.0)
    kernel = known.kernel
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(centroid(kernel), 0, atol=1e-9)
    own = (scale**2 - 1) / 12 if reduction == "area" else 0.0
    np.testing.assert_allclose(np.diag(second_moments(kernel)), [2.25 + own, 1.0 + own], rtol=0.02, atol=0.03)
    if reduction != "sampling":
        expected = reduce_plane(blur(planes(1)[0], blur_kernel(np.array([1.5, 1.0]))), scale, reduction)
        found = known.degrade(planes(1)[0], RNG(0))
        inner = (slice(8, -8),) * 2
        np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)


def test_samples_depend_on_their_number_and_keep_their_orientation(tmp_path: Path) -> None:
    column = np.tile(np.arange(120, dtype=np.float32), (120, 1))
    paths, laws = write(tmp_path / "a", [column]), np.array([[0.0, 1e-4], [0.0, 4e-4]])
    crops = UnpairedCrops(paths, paths, laws, 2, 32, seed=1, batch=2, steps=4)
    first, again = crops[5], crops[5]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["kernel"], crops[4]["kernel"])
    for number in range(8):
        sample = crops[number]
        assert sample["high"].shape == (1, 64, 64)
        assert torch.equal(sample["low"][0, :, 1:] - sample["low"][0, :, :-1], torch.ones(32, 31))
        assert (float(sample["law"][1]) > 2e-4) == (float(sample["level"]) > 0)  # the noisier half is the higher level


def learn(high: list[Path], low: list[Path], folder: Path, config: PdmConfig) -> LearnedDegradation:
    fabric = Fabric(accelerator="cpu", devices=1)
    return learn_degradation(high, low, 2, config, 3, folder, "digest", fabric, workers=0)


def short(steps: int, batch: int = 2) -> PdmConfig:
    fit = replace(PdmConfig().fit, steps=steps, batch=batch, warmup=5, hold=steps // 2, gradients_every=2, ema=0.9)
    return PdmConfig(crop=32, fit=fit, checkpoint_every=3)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Photographs, and the same ones degraded: on so few, others would be others in sharpness too."""
    folder, rng = tmp_path_factory.mktemp("sets"), RNG(0)
    degraded = [KNOWN.degrade(plane[::-1], rng) for plane in planes()]
    return write(folder / "high", planes()), write(folder / "low", degraded)


def test_resumed_learning_ends_as_unbroken(
    sets: tuple[list[Path], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = learn(*sets, tmp_path / "whole", short(8))
    original = UnpairedCrops.__getitem__

    def interrupted(self: UnpairedCrops, number: int) -> dict[str, torch.Tensor]:
        if number == 11:
            raise KeyboardInterrupt
        return original(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(UnpairedCrops, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(*sets, tmp_path / "broken", short(8))
    assert not (tmp_path / "broken" / FACTS).exists()
    resumed = learn(*sets, tmp_path / "broken", short(8))
    for name, weight in unbroken.generator.state_dict().items():
        assert torch.equal(weight, resumed.generator.state_dict()[name]), name
    assert resumed.facts == unbroken.facts


def test_every_term_reaches_the_generator(sets: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    learn(*sets, tmp_path, short(6))
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    norms = {key: float(value) for _, key, value in rows if key.startswith("gradient_")}
    assert set(norms) == {f"gradient_{term}" for term in TERMS}
    assert all(norm > 0 for norm in norms.values()), norms


def test_known_degradation_is_recovered(sets: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    """Loosely, from six images in a few seconds; `medrestore evaluate degradation` is strict."""
    facts = learn(*sets, tmp_path, short(80, batch=3)).facts
    assert facts["moment"] == pytest.approx(1.44, rel=0.35)
    assert facts["noise"] == pytest.approx(8 / 255, rel=0.25)
    assert max(map(abs, facts["shift"])) < 0.01
    assert max(map(abs, facts["lag1"])) < 0.25


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    learned = LearnedDegradation(generator().eval(), {"moment": 1.5})
    write_learned(tmp_path, learned)
    found, high = read_learned(tmp_path), planes(1)[0][:128, :128]
    assert found.facts == {"moment": 1.5}
    assert found.scale == 2
    first, again, other = (found.degrade(high, RNG(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, learned.degrade(high, RNG(1)))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (64, 64)
    assert first.dtype == np.float32
    assert not np.array_equal(first, other)
    copied: LearnedDegradation = pickle.loads(pickle.dumps(found))  # as worker processes get it
    np.testing.assert_array_equal(copied.degrade(high, RNG(1)), first)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    write_learned(tmp_path, LearnedDegradation(generator().eval()))
    record: dict[str, Any] = json.loads((tmp_path / FACTS).read_text())
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(ValueError, match="learn the degradation anew"):
        read_learned(tmp_path)
    (tmp_path / FACTS).write_text(json.dumps(record | {"version": 0}))
    with pytest.raises(ValueError, match="version 1"):
        read_learned(tmp_path)


def test_figure_shows_the_draws(tmp_path: Path) -> None:
    learned, low = LearnedDegradation(generator().eval()), [plane[::2, ::2] for plane in planes()]
    true: NDArray[np.float64] = KNOWN.kernel
    svg, again = (draws_figure(learned, planes(), low, 1, true) for _ in range(2))
    assert svg == again
    assert svg.startswith("<svg")
    for title in ("mean kernel", "its spectrum", "its autocorrelation", "real", "made", "true, down"):
        assert re.search(rf">{title}<", svg), title
    assert draws_png(learned, planes(), low, 1).startswith(b"\x89PNG")
