"""The order of steps for one image, with a runner that is no network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RunFailed
from app.noise import WHOLE_FRAME_PIXELS, Array
from app.options import Options
from app.pipeline import EXACT, FAST, Restoration, choose_precision, demand, restore
from models.bundle import Bundle
from models.errors import ImageTooLarge, OptionError
from models.imaging.correlation import NoiseCorrelation
from models.imaging.image import Image, Limits, ValueMap
from models.imaging.values import float_values
from tests.unit.app.smoother import COLOURED, HU, Smoother, bundle_of, image_of, mean_3x3, noisy

DENOISE = bundle_of()


def run(
    image: Image, options: Options | None = None, bundle: Bundle = DENOISE, runner: Smoother | None = None
) -> Restoration:
    runner = runner or Smoother(bundle.manifest.scale)
    return asyncio.run(restore(image, bundle, options or Options(), runner))


def test_answers_what_the_network_answers_in_the_stored_type() -> None:
    pixels = noisy(1, 20, 24, 1)
    result = run(image_of(pixels)).image
    unit = pixels[None, 0, :, :, 0].astype(np.float32) / 4096
    expected = mean_3x3(unit[:, None])[0, 0] * 4096
    assert result.pixels.dtype == np.int16
    assert np.abs(result.pixels[0, :, :, 0] - expected).max() <= 0.51


@given(rows=st.integers(1, 70), columns=st.integers(1, 70), samples=st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_tiles_leave_no_seam(rows: int, columns: int, samples: int) -> None:
    image = image_of(noisy(1, rows, columns, samples, sigma=200))
    tiled = run(image).image.pixels
    whole = run(image, bundle=bundle_of(tiles=[(96, 96)], halo=0)).image.pixels
    np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_strength_0_gives_the_input_bit_for_bit(dtype: str) -> None:
    pixels = np.random.default_rng(3).uniform(0, 200, (2, 9, 11, 3)).astype(dtype)
    runner = Smoother()
    result = run(image_of(pixels, float_values(pixels)), Options(strength=0), runner=runner)
    assert result.image.pixels.tobytes() == pixels.tobytes()
    assert set(runner.graphs()) == {"estimate"}
    assert result.evidence.noise_before == result.evidence.noise_after != 0
    assert result.evidence.removed_max == 0


def test_strength_reaches_the_network() -> None:
    image = image_of(noisy(1, 16, 16, 1, sigma=300))
    half, full = (run(image, Options(strength=s)).image.pixels.astype(int) - image.pixels for s in (0.5, 1.0))
    assert np.abs(2 * half - full).max() <= 2


def test_sigma_is_in_real_world_units() -> None:
    runner = Smoother()
    values = replace(HU, slope=2.0)
    result = run(image_of(noisy(1, 16, 16, 1), values), Options(sigma=20.0), runner=runner)
    parameters = next(arrays["parameters"] for graph, arrays in runner.calls if graph == "restore")
    np.testing.assert_allclose(parameters, [[0, (20 / 2 / 4096) ** 2, 0]], rtol=1e-6)
    assert result.evidence.noise_before == pytest.approx(20.0, rel=1e-6)
    assert result.derivation.options == {"strength": 1.0, "sigma": 20.0}


def test_sigma_leaves_the_estimated_correlation() -> None:
    runner = Smoother(colour=(0.25, 0.5, -0.125, 0.0625))
    result = run(image_of(noisy(1, 16, 16, 1)), Options(sigma=8.0), bundle_of(parameters=COLOURED), runner)
    parameters = next(arrays["parameters"] for graph, arrays in runner.calls if graph == "restore")
    np.testing.assert_allclose(parameters, [[0, (8 / 4096) ** 2, 0, 0.25, 0.5, -0.125, 0.0625]])
    assert result.evidence.noise_correlation == NoiseCorrelation(x1=0.5, x2=0.0625, y1=0.25, y2=-0.125)


def test_a_model_that_tells_no_correlation_has_none_in_its_evidence() -> None:
    evidence = run(image_of(noisy(1, 16, 16, 1))).evidence
    assert evidence.noise_correlation is None


def test_frames_tell_their_correlation_by_the_power_of_their_noise() -> None:
    class Varying(Smoother):
        async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
            self.colour = (0.0, 0.8, 0.0, 0.0) if arrays["image"].std() < 0.01 else (0.0, 0.2, 0.0, 0.0)
            return await super().__call__(graph, arrays)

    frames = np.concatenate([noisy(1, 64, 64, 1, sigma=sigma) for sigma in (20, 60)])
    flat = np.full((1, 64, 64, 1), 7, np.int16)
    result = run(image_of(np.concatenate([frames, flat])), bundle=bundle_of(parameters=COLOURED), runner=Varying())
    assert result.evidence.noise_correlation is not None
    assert result.evidence.noise_correlation.x1 == pytest.approx((0.8 * 400 + 0.2 * 3600) / 4000, rel=0.1)


@pytest.mark.parametrize(("across", "known"), [(0.5, True), (0.75, True), (0.9, False), (-0.5, False)])
def test_tells_correlation_that_the_model_was_not_trained_for(across: float, known: bool) -> None:
    bundle = bundle_of(parameters=COLOURED, trained_correlation=(-0.2, 0.7))
    result = run(image_of(noisy(1, 32, 32, 1)), bundle=bundle, runner=Smoother(colour=(0.1, across, 0, 0)))
    assert result.evidence.in_trained_range is known


def test_what_was_removed_is_told_with_its_correlation() -> None:
    image = image_of(noisy(2, 64, 64, 3, sigma=40))
    result = run(image)
    change = result.image.pixels.astype(float) - image.pixels
    power = (change**2).mean()
    across = (change[:, :, 1:] * change[:, :, :-1]).mean() / power
    down = (change[:, 1:] * change[:, :-1]).mean() / power
    assert result.evidence.removed_correlation == pytest.approx((across, down), rel=1e-6)
    assert result.derivation.evidence["removed_correlation"] == f"{across:.3g} across {down:.3g} down"


def test_padding_has_no_part_in_the_correlation_of_what_was_removed() -> None:
    pixels = noisy(1, 40, 40, 1)
    padding = np.zeros((1, 40, 40), bool)
    padding[:, :, 20:] = True
    pixels[padding] = -2000
    result = run(image_of(pixels, padding=padding))
    change = (result.image.pixels.astype(float) - pixels)[0, :, :20, 0]
    power = (change**2).mean()
    expected = (change[:, 1:] * change[:, :-1]).mean() / power, (change[1:] * change[:-1]).mean() / power
    assert result.evidence.removed_correlation == pytest.approx(expected, rel=1e-6)


def test_where_nothing_is_removed_that_has_no_correlation() -> None:
    evidence = run(image_of(noisy(1, 16, 16, 1)), Options(strength=0)).evidence
    assert (evidence.removed_rms, evidence.removed_correlation) == (0, None)


def test_colour_planes_share_one_estimate() -> None:
    runner = Smoother()
    run(image_of(noisy(1, 16, 16, 3)), runner=runner)
    given = [arrays["parameters"].tobytes() for graph, arrays in runner.calls if graph == "restore"]
    assert len(given) == 3
    assert len(set(given)) == 1


def test_equal_planes_stay_equal_and_are_worked_once() -> None:
    grey = noisy(1, 40, 40, 1)
    runner = Smoother()
    result = run(image_of(grey.repeat(3, -1)), runner=runner).image.pixels
    assert (result == result[..., :1]).all()
    alone = Smoother()
    np.testing.assert_array_equal(result[..., :1], run(image_of(grey), runner=alone).image.pixels)
    assert runner.graphs() == alone.graphs()


def test_frames_are_worked_each_for_itself() -> None:
    pixels = np.concatenate([noisy(1, 20, 33, 1, seed=s, sigma=20 * s) for s in (1, 2, 3)])
    together = run(image_of(pixels)).image.pixels
    for index in range(3):
        np.testing.assert_array_equal(together[index], run(image_of(pixels[index : index + 1])).image.pixels[0])


def test_padding_comes_back_and_is_no_evidence() -> None:
    pixels = noisy(2, 24, 24, 1)
    padding = np.zeros((2, 24, 24), bool)
    padding[1, :, 12:] = True
    pixels[padding] = -2000
    result = run(image_of(pixels, padding=padding))
    assert (result.image.pixels[padding] == -2000).all()
    assert (result.image.pixels[~padding] != -2000).all()
    assert result.evidence.removed_max is not None
    assert 0 < result.evidence.removed_max < 200


def test_evidence_is_in_real_world_units() -> None:
    image = image_of(noisy(1, 64, 64, 1, sigma=40), replace(HU, slope=0.5, intercept=0.0))
    result = run(image)
    change = 0.5 * (result.image.pixels.astype(float) - image.pixels)
    evidence = result.evidence
    assert evidence.unit == "HU"
    assert evidence.noise_before == pytest.approx(20, rel=0.1)
    assert evidence.noise_after is not None
    assert evidence.noise_after < 10
    assert evidence.removed_rms == pytest.approx(np.sqrt((change**2).mean()))
    assert evidence.removed_max == pytest.approx(np.abs(change).max())
    assert result.derivation.evidence["noise_before"] == evidence.noise_before


@pytest.mark.parametrize(("sigma", "known"), [(100.0, True), (500.0, False)])
def test_tells_noise_that_the_model_was_not_trained_for(sigma: float, known: bool) -> None:
    assert run(image_of(noisy(1, 64, 64, 1, sigma=sigma))).evidence.in_trained_range is known


def test_counts_what_had_to_be_clipped() -> None:
    pixels = np.zeros((1, 8, 8, 1), np.int16)
    pixels[0, 4, 4] = 1800
    image = replace(image_of(pixels), maximum=100.0)
    assert run(image).evidence.clipped == 9  # the mean spreads the peak to 200 at 9 pixels
    assert run(image).image.pixels.max() == 100


@pytest.mark.parametrize("scale", [2, 4])
def test_superresolve_enlarges_every_frame_and_plane(scale: int) -> None:
    pixels = noisy(2, 21, 17, 3)
    result = run(image_of(pixels, spacing_mm=(1.0, 2.0)), bundle=bundle_of("superresolve", scale))
    np.testing.assert_array_equal(result.image.pixels, pixels.repeat(scale, 1).repeat(scale, 2))
    assert result.image.spacing_mm == (1.0 / scale, 2.0 / scale)
    assert result.evidence.noise_before is None
    assert result.derivation.options == {}


@pytest.mark.parametrize("options", [Options(strength=0.5), Options(sigma=3.0)])
def test_superresolve_refuses_options_of_denoising(options: Options) -> None:
    with pytest.raises(OptionError, match="superresolve takes neither"):
        run(image_of(noisy(1, 8, 8, 1)), options, bundle_of("superresolve", 2))


@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan")])
def test_refuses_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(OptionError, match="strength"):
        Options(strength=strength)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("inf"), float("nan")])
def test_refuses_a_sigma_that_is_no_level(sigma: float) -> None:
    with pytest.raises(OptionError, match="sigma"):
        Options(sigma=sigma)


def test_refuses_a_result_over_the_limit() -> None:
    image = image_of(noisy(1, 10, 10, 1))
    with pytest.raises(ImageTooLarge, match="1599"):
        asyncio.run(restore(image, bundle_of("superresolve", 4), Options(), Smoother(4), Limits(pixels=1599)))


def test_an_answer_that_is_no_number_fails() -> None:
    class Broken(Smoother):
        async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
            answer = await super().__call__(graph, arrays)
            return answer if graph == "estimate" else {**answer, "restored": answer["restored"] * np.float32("nan")}

    with pytest.raises(RunFailed, match="no numbers"):
        run(image_of(noisy(1, 8, 8, 1)), runner=Broken())


def test_the_first_failure_stops_the_other_tiles() -> None:
    class Failing(Smoother):
        finished = 0

        async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
            number = len(self.calls)
            answer = await super().__call__(graph, arrays)
            if graph == "restore":
                if number == 1:
                    raise RunFailed("this tile")
                await asyncio.sleep(60)
            self.finished += 1
            return answer

    runner = Failing()
    with pytest.raises(RunFailed, match="this tile"):
        run(image_of(noisy(1, 90, 90, 1)), runner=runner)
    assert runner.finished == 1  # the estimate


@pytest.mark.parametrize(
    ("dtype", "format", "asked", "setting", "expected"),
    [
        ("uint8", "png", None, True, FAST),
        ("uint8", "png", None, False, EXACT),
        ("uint8", "png", "exact", True, EXACT),
        ("uint16", "png", None, True, EXACT),
        ("float32", "tiff", None, True, EXACT),
        ("uint8", "dicom", None, True, EXACT),
        ("uint16", "dicom", "fast", False, FAST),
    ],
)
def test_only_8_bit_images_are_fast_unasked(
    dtype: str, format: str, asked: str | None, setting: bool, expected: str
) -> None:
    image = replace(image_of(np.zeros((1, 2, 2, 1), dtype), ValueMap(1, 0)), format=format)
    assert choose_precision(image, asked, setting) == expected


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), samples=st.sampled_from([1, 3]))
@settings(max_examples=50, deadline=None)
def test_demand_is_what_is_in_flight_at_most(rows: int, columns: int, samples: int) -> None:
    image = image_of(np.zeros((2, rows, columns, samples), np.int16))
    items, pixels, count = demand(image, DENOISE, window=4)
    assert samples <= items <= max(4, samples)
    assert rows * columns * samples <= pixels <= max(rows * columns * samples, 4 * 32 * 32)
    assert count == 4 * pixels


def test_demand_does_not_grow_with_a_huge_frame() -> None:
    pixels = np.broadcast_to(np.int16(0), (1, 10_000, 10_000, 1))
    assert demand(image_of(pixels), DENOISE, window=4)[1] == WHOLE_FRAME_PIXELS
