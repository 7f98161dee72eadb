"""Bicubic and hand-made degradation, their mixture, and the configuration: one interface, aligned by pixel area."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as images

from training.config import build
from training.data.noise import NoiseLaw, NoisePopulation, Plane
from training.degradation.bicubic import BicubicDegradation, reduce_plane
from training.degradation.blind import BlindDegradation, blur, blur_kernel, draw_blur
from training.degradation.config import KINDS, BicubicConfig, BlindConfig, DegradationConfig, PdmConfig, preset
from training.degradation.degradation import build_degradation
from training.degradation.generator import DegradationGenerator
from training.degradation.learned import LearnedDegradation
from training.degradation.measure import centroid, second_moments

RNG = np.random.default_rng
SILENT = BlindConfig(clean_share=1.0, clip_share=0.0)


def camera(side: int = 128) -> Plane:
    return (images.camera()[100 : 100 + side, 100 : 100 + side] / 255).astype(np.float32)


def ramp(side: int, axis: int) -> Plane:
    """Value = row or column: an image that tells where every pixel came from."""
    return np.moveaxis(np.tile(np.arange(side, dtype=np.float32) / side, (side, 1)), 1, axis)


@pytest.mark.parametrize("kind", KINDS)
def test_presets_name_their_shares(kind: str) -> None:
    config = preset(kind)
    shares = {"bicubic": config.bicubic, "blind": config.blind, "pdm": config.pdm}
    expected = {"bicubic": 0.2, "blind": 0.3, "pdm": 0.5} if kind == "mix" else {kind: 1.0}
    assert {name: share for name, share in shares.items() if share} == expected


def test_wrong_configurations_are_named() -> None:
    with pytest.raises(ValueError, match="there are bicubic, blind, pdm, mix"):
        preset("cubic")
    with pytest.raises(ValueError, match="one must be positive"):
        DegradationConfig(bicubic=0)
    with pytest.raises(ValueError, match="narrowest"):
        BlindConfig(narrowest=3.0)
    with pytest.raises(ValueError, match="shares must lie"):
        BicubicConfig(area_share=1.5)
    with pytest.raises(ValueError, match="unknown key 'blurr'"):
        build(DegradationConfig, {"handmade": {"blurr": 1}}, "degradation")
    with pytest.raises(ValueError, match="even side"):
        PdmConfig(kernel=21).side(2)


def test_configuration_reaches_every_option() -> None:
    raw = {
        "pdm": 0.5,
        "handmade": {"plateau_beta": [1.0, 1.5], "noise": {"highest": 0.1}},
        "learned": {"fit": {"steps": 7}},
    }
    config = build(DegradationConfig, raw, "degradation")
    assert config.handmade.plateau_beta == (1.0, 1.5)
    assert config.handmade.noise.highest == 0.1
    assert config.learned.fit.steps == 7


@given(st.integers(0, 10_000), st.sampled_from([2, 4]))
@settings(max_examples=60, deadline=None)
def test_blur_is_as_wide_as_configured_and_shifts_nothing(seed: int, scale: int) -> None:
    config = BlindConfig()
    kernel = draw_blur(config, scale, RNG(seed)).astype(np.float64)
    assert kernel.shape[0] % 2 == 1
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(centroid(kernel), 0, atol=1e-5)
    widths = np.sqrt(np.linalg.eigvalsh(second_moments(kernel)))
    # A kernel of a third of a pixel is little more than its middle pixel: the grid is what is wide.
    assert widths[0] >= 0.5 * config.narrowest * scale / 2 - 0.15
    assert widths[1] <= config.widest * scale / 2 * 1.05


@pytest.mark.parametrize(
    ("shape", "beta"),
    [("generalised", 0.5), ("generalised", 1.0), ("generalised", 4.0), ("plateau", 1.0), ("plateau", 2.0)],
)
def test_width_means_the_same_of_every_shape(shape: str, beta: float) -> None:
    kernel = blur_kernel(np.array([2.0, 3.0]), 0.0, shape, beta).astype(np.float64)
    np.testing.assert_allclose(np.diag(second_moments(kernel)), [4.0, 9.0], rtol=0.06)


def test_turned_kernel_has_turned_axes() -> None:
    kernel = blur_kernel(np.array([2.0, 0.8]), np.pi / 2).astype(np.float64)
    np.testing.assert_allclose(np.diag(second_moments(kernel)), [0.64, 4.0], rtol=0.05)


def test_blur_is_the_convolution_with_the_kernel() -> None:
    impulse = np.zeros((31, 33), np.float32)
    impulse[15, 16] = 1
    kernel = blur_kernel(np.array([1.5, 0.7]), 0.4)
    half = kernel.shape[0] // 2
    found = blur(impulse, kernel)[15 - half : 16 + half, 16 - half : 17 + half]
    np.testing.assert_allclose(found, kernel, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["bicubic", "blind", "pdm"])
def test_every_degradation_is_aligned_by_pixel_area(kind: str, scale: int, axis: int) -> None:
    """A ramp comes out as the values at the middles of the low-resolution pixels: no half-pixel shift."""
    silent = NoisePopulation(1e-9, 1e-9)
    generator = DegradationGenerator(scale, PdmConfig().side(scale)).eval()
    generator.noise.start(1e-9)
    config = DegradationConfig(**{"bicubic": 0.0, kind: 1.0}, handmade=BlindConfig(clip_share=0.0))
    degradation = build_degradation(config, scale, silent, LearnedDegradation(generator))
    for seed in range(6):
        low = degradation.degrade(ramp(32 * scale, axis), RNG(seed))
        expected = ramp(32, axis) + (scale - 1) / 2 / (32 * scale)
        np.testing.assert_allclose(low[10:-10, 10:-10], expected[10:-10, 10:-10], atol=0.1 / (32 * scale))


@pytest.mark.parametrize("kind", ["bicubic", "blind"])
def test_degradation_depends_on_its_generator_alone(kind: str) -> None:
    degradation = build_degradation(preset(kind), 2, None, None)
    first, again, other = (degradation.degrade(camera(), RNG(seed)) for seed in (1, 1, 2))
    assert first.shape == (64, 64)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert kind == "bicubic" or not np.array_equal(first, other)


def test_bicubic_alone_is_the_benchmark_protocol() -> None:
    low = build_degradation(preset("bicubic"), 4, None, None).degrade(camera(), RNG(0))
    np.testing.assert_array_equal(low, reduce_plane(camera(), 4))


def test_bicubic_options_do_what_they_say() -> None:
    area = BicubicDegradation(BicubicConfig(area_share=1.0), 2).degrade(camera(), RNG(0))
    np.testing.assert_allclose(area, camera().reshape(64, 2, 64, 2).mean((1, 3)), atol=1e-6)
    noisy = BicubicDegradation(BicubicConfig(noise_share=1.0, highest_noise=0.1), 2).degrade(camera(), RNG(0))
    assert 0 < np.std(noisy - reduce_plane(camera(), 2)) <= 0.1
    levels = BicubicDegradation(BicubicConfig(quantise_share=1.0), 2).degrade(camera(), RNG(0)) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)


def test_blind_noise_is_the_population_s() -> None:
    class Fixed:
        def draw(self, rng: np.random.Generator) -> NoiseLaw:
            return NoiseLaw(0.0, 0.05**2)

    config = BlindConfig(narrowest=0.3, widest=0.3, clean_share=0.0, clip_share=0.0, area_share=1.0)
    flat = np.full((256, 256), 0.5, np.float32)
    low = BlindDegradation(config, 2, Fixed()).degrade(flat, RNG(0))
    assert low.std() == pytest.approx(0.05, rel=0.03)
    assert low.mean() == pytest.approx(0.5, abs=0.002)


def test_blind_widens_with_the_scale() -> None:
    """The same configuration blurs twice as many high-resolution pixels at x4."""
    moments = []
    for scale in (2, 4):
        config = BlindConfig(narrowest=1.5, widest=1.5, generalised_share=0, plateau_share=0)
        moments.append(np.trace(second_moments(draw_blur(config, scale, RNG(0)).astype(np.float64))) / 2)
    assert moments[1] == pytest.approx(4 * moments[0], rel=0.02)


def test_jpeg_is_off_unless_asked_for() -> None:
    plain = BlindDegradation(SILENT, 2, NoisePopulation()).degrade(camera(), RNG(3))
    config = BlindConfig(clean_share=1.0, clip_share=0.0, jpeg_share=1.0, jpeg_quality=(10, 10))
    packed = BlindDegradation(config, 2, NoisePopulation()).degrade(camera(), RNG(3))
    assert len(np.unique(plain)) > 1000
    assert len(np.unique(packed)) <= 256
    assert 0.002 < np.abs(packed - plain).mean() < 0.05


def test_mixture_draws_by_shares() -> None:
    """Exact bicubic results are counted among those of a mixture."""
    degradation = build_degradation(DegradationConfig(bicubic=3.0, blind=1.0), 2, None, None)
    high = camera(64)
    exact = reduce_plane(high, 2)
    share = np.mean([np.array_equal(degradation.degrade(high, RNG(seed)), exact) for seed in range(400)])
    assert share == pytest.approx(0.75, abs=0.08)


def test_learned_share_needs_something_learned_of_that_scale() -> None:
    with pytest.raises(ValueError, match="nothing is learned"):
        build_degradation(preset("mix"), 2, None, None)
    with pytest.raises(ValueError, match="learned at x4"):
        build_degradation(preset("pdm"), 2, None, LearnedDegradation(DegradationGenerator(4, 24)))
