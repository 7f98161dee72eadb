"""The guard of super-resolution: what it measures on an image, what it asks, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from app.consistency import consistency_of
from app.errors import Inconsistent, status_of
from app.noise import Array
from app.options import Options, guarded
from app.pipeline import Evidence, Restoration, derive, restore
from models.bundle import Bundle
from models.errors import OptionError
from models.imaging.image import Image, ValueMap
from models.imaging.reduction import BEST_DB, Agreement, reduced
from tests.unit.app.smoother import Smoother, bundle_of, image_of, noisy

UPSCALER = bundle_of("superresolve", 2)
HALF_HU = ValueMap(1 / 4096, 0.25, slope=0.5, unit="HU")


def run(image: Image, decibels: float | None = None, bundle: Bundle = UPSCALER) -> Restoration:
    options = Options(min_consistency=decibels)
    return asyncio.run(restore(image, bundle, options, Smoother(bundle.manifest.scale)))


def differences(image: Image, result: Image, scale: int) -> list[Array]:
    """Stored values, by frame: what comes back less what was there."""
    frames = []
    for low, high in zip(image.pixels, result.pixels, strict=True):
        planes = [reduced(high[..., sample], scale) - low[..., sample] for sample in range(low.shape[2])]
        frames.append(np.stack(planes))
    return frames


@pytest.mark.parametrize(("frames", "samples", "scale"), [(1, 1, 2), (3, 1, 4), (2, 3, 2)])
def test_it_is_measured_on_the_stored_pixels_in_the_image_s_units(frames: int, samples: int, scale: int) -> None:
    pixels = noisy(frames, 21, 34, samples)
    pixels[-1] //= 3
    image = image_of(pixels, HALF_HU)
    result = run(image, bundle=bundle_of("superresolve", scale))
    off = differences(image, result.image, scale)
    levels = [20 * np.log10(np.ptp(low) / np.sqrt(np.mean(d**2))) for low, d in zip(pixels, off, strict=True)]
    found = result.evidence.consistency
    assert found is not None
    assert found.psnr == pytest.approx(min(levels), abs=1e-6)
    assert found.rms == pytest.approx(0.5 * np.sqrt(np.mean(np.square(off))))
    assert found.largest == pytest.approx(0.5 * np.abs(off).max())


class Brightener(Smoother):
    """Adds a tenth of the unit range."""

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"restored": (await super().__call__(graph, arrays))["restored"] + np.float32(0.1)}


def test_what_is_cut_to_the_storable_range_is_measured_as_it_was_cut() -> None:
    image = replace(image_of(noisy(1, 20, 20, 1, sigma=200)), maximum=1100.0)
    result = asyncio.run(restore(image, UPSCALER, Options(), Brightener(2)))
    assert result.evidence.clipped > 0
    found = result.evidence.consistency
    assert found is not None
    assert found.largest == pytest.approx(max(np.abs(d).max() for d in differences(image, result.image, 2)))
    assert found.rms < 0.1 * 4096


def test_a_denoising_measures_no_such_thing() -> None:
    image = image_of(noisy(1, 20, 20, 1))
    assert asyncio.run(restore(image, bundle_of(), Options(), Smoother())).evidence.consistency is None


def test_the_guard_refuses_below_what_is_asked_and_names_the_frame() -> None:
    smooth = np.add.outer(np.arange(24), np.arange(24)).astype(np.int16)[None, :, :, None] * 40
    image = image_of(np.concatenate([smooth, noisy(1, 24, 24, 1)]))
    worst = run(image).evidence.consistency.psnr  # type: ignore[union-attr]
    assert worst is not None
    assert run(image, worst - 0.01).image.pixels.any()
    with pytest.raises(Inconsistent, match="frame 2 of the result") as caught:
        run(image, worst + 0.01)
    assert caught.value.measured_db == pytest.approx(worst, abs=1e-3)
    assert caught.value.required_db == worst + 0.01
    assert f"{worst:.1f} dB" in str(caught.value)
    assert (status_of(caught.value).code, status_of(caught.value).slug) == (422, "inconsistent")


def test_what_cannot_be_judged_is_refused_only_where_something_is_asked() -> None:
    pixels = np.full((1, 9, 9, 1), -2000, np.int16)
    padding = np.ones((1, 9, 9), bool)
    blank = image_of(pixels, padding=padding)
    assert run(blank, 100.0).evidence.consistency.psnr == BEST_DB  # type: ignore[union-attr]
    padding, pixels = padding.copy(), pixels.copy()
    padding[0, 4, 4], pixels[0, 4, 4] = False, 0
    dot = image_of(pixels, padding=padding)
    assert run(dot).evidence.consistency is None
    with pytest.raises(Inconsistent, match="far enough from padding"):
        run(dot, 0.0)


def test_a_record_that_lacks_the_measure_leaves_it_untold() -> None:
    known = Agreement(100, 0.01, 0.2, 1.0, 1 / 255)
    assert consistency_of([known, None], HALF_HU) is None
    assert consistency_of([known, known], HALF_HU) is not None


@pytest.mark.parametrize(
    ("strict", "asked", "promised", "expected"),
    [
        (False, None, 50.0, None),
        (True, None, None, 30.0),
        (True, None, 41.5, 41.5),
        (True, 20.0, 41.5, 20.0),
        (False, 20.0, 41.5, 20.0),
    ],
)
def test_strict_mode_asks_what_the_model_promises(
    strict: bool, asked: float | None, promised: float | None, expected: float | None
) -> None:
    bundle = bundle_of("superresolve", 2, consistency=promised)
    assert guarded(Options(min_consistency=asked), strict, bundle, 30.0) == Options(min_consistency=expected)


def test_the_guard_belongs_to_super_resolution() -> None:
    image = image_of(noisy(1, 20, 20, 1))
    with pytest.raises(OptionError, match="belong to superresolve"):
        guarded(Options(), True, bundle_of(), 30.0)
    with pytest.raises(OptionError, match="belong to superresolve"):
        asyncio.run(restore(image, bundle_of(), Options(min_consistency=20.0), Smoother()))
    for decibels in (-1.0, 121.0, float("nan")):
        with pytest.raises(OptionError, match="between 0 and 120 dB"):
            Options(min_consistency=decibels)


def test_the_object_tells_what_was_asked_and_measured_and_of_an_adversarial_model() -> None:
    image = image_of(noisy(1, 20, 20, 1), HALF_HU)
    found = run(image, 1.0)
    assert found.derivation.options == {"min_consistency": "1 dB"}
    assert found.derivation.evidence["consistency_psnr"].endswith(" dB")
    assert isinstance(found.derivation.evidence["consistency_rms"], float)
    assert not found.derivation.adversarial
    bundle = bundle_of("superresolve", 2, name="smoother-adversarial", adversarial=True)
    derivation = derive(bundle, Options(), "onnx", "fp32", Evidence("HU"), "")
    assert (derivation.adversarial, derivation.options) == (True, {})
