"""Sources, crops and pairs: what a training step sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.networks.denoiser import PARAMETERS
from training.data.crop import CropMixture, random_crop, vary_intensity
from training.data.noise import NoisePopulation
from training.data.pair import NoisyPairs, PairConfig, ReducedPairs
from training.data.source import Source, SourceConfig, area_reduce, data_list
from training.degradation.bicubic import reduce
from training.degradation.config import BlindConfig, DegradationConfig
from training.degradation.degradation import build_degradation

RNG = np.random.default_rng


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Gray, colour, 16-bit and float images, one each."""
    rng = RNG(0)
    for folder in ("gray", "colour", "ct", "float"):
        (tmp_path / folder).mkdir()
    Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(tmp_path / "gray" / "a.png")
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "colour" / "a.png")
    tifffile.imwrite(tmp_path / "ct" / "p1_a.tif", rng.integers(0, 4096, (40, 50)).astype(np.uint16))
    tifffile.imwrite(tmp_path / "ct" / "p2_a.tif", np.full((40, 50), 1064, np.uint16))
    tifffile.imwrite(tmp_path / "float" / "a.tif", rng.random((40, 50), dtype=np.float32))
    return tmp_path


@pytest.mark.parametrize("folder", ["gray", "colour", "ct", "float"])
def test_planes_lie_on_the_unit_scale(data: Path, folder: str) -> None:
    plane = Source(SourceConfig("s", folder), data).plane(0, RNG(0))
    assert plane.dtype == np.float32
    assert plane.shape == (40, 50)
    assert plane.min() >= 0
    assert plane.max() <= 1


def test_window_maps_hounsfield_values_and_clips(data: Path) -> None:
    source = Source(SourceConfig("ct", "ct", windows=((864.0, 1264.0),)), data)
    np.testing.assert_allclose(source.plane(1, RNG(0)), 0.5)  # 1064 is the middle of the window
    assert source.plane(0, RNG(0)).max() == 1.0


def test_held_back_patients_are_left_out(data: Path) -> None:
    assert [p.name for p in Source(SourceConfig("ct", "ct", exclude="p2*"), data).paths] == ["p1_a.tif"]
    with pytest.raises(FileNotFoundError, match="no image in ct"):
        Source(SourceConfig("ct", "ct", exclude="p*"), data)


def test_data_list_names_every_file_relative_to_the_data_folder(data: Path) -> None:
    (entry,) = data_list([Source(SourceConfig("s", "gray"), data)], data)
    assert entry["file"] == "gray/a.png"
    assert len(entry["sha256"]) == 64


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 16, 31]), st.integers(0, 1000))
@settings(max_examples=60)
def test_crop_has_its_size_and_invents_no_value(rows: int, columns: int, side: int, seed: int) -> None:
    plane = RNG(seed).random((rows, columns), dtype=np.float32)
    crop = random_crop(plane, side, RNG(seed))
    assert crop.shape == (side, side)
    assert np.isin(crop, plane).all()


def test_all_eight_orientations_occur() -> None:
    plane = np.arange(9, dtype=np.float32).reshape(3, 3)
    assert len({random_crop(plane, 3, RNG(seed)).tobytes() for seed in range(100)}) == 8


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_varied_intensity_stays_in_range(seed: int) -> None:
    crop = vary_intensity(RNG(seed).random((16, 16), dtype=np.float32), RNG(seed), dark_share=0.5, invert_share=0.5)
    assert crop.dtype == np.float32
    assert crop.min() >= 0
    assert crop.max() <= 1


def test_area_reduction_is_the_mean_of_blocks() -> None:
    plane = np.arange(20, dtype=np.float32).reshape(4, 5)
    np.testing.assert_allclose(area_reduce(plane, 2), [[3, 5], [13, 15]])


def noisy(data: Path, seed: int = 1) -> NoisyPairs:
    crops = CropMixture([Source(SourceConfig("s", "gray"), data)])
    return NoisyPairs(crops, PairConfig(crop=16), seed, batch=4, steps=3, population=NoisePopulation())


def test_sample_depends_on_seed_and_number_alone(data: Path) -> None:
    first, second, other = noisy(data), noisy(data), noisy(data, seed=2)
    second[3]  # having drawn another one before changes nothing
    assert all(torch.equal(first[7][key], second[7][key]) for key in first[7])
    assert not torch.equal(first[7]["image"], other[7]["image"])
    assert not torch.equal(first[7]["image"], first[6]["image"])
    assert len(first) == 12


def test_pair_is_a_noisy_and_a_clean_view_of_one_crop(data: Path) -> None:
    for number in range(12):
        sample = noisy(data)[number]
        slope, offset, *_ = sample["parameters"]
        difference = sample["image"] - sample["clean"]
        assert difference.abs().max() < 6 * torch.sqrt(slope + offset) + 1 / 255
        assert sample["told"].shape == (len(PARAMETERS),)


def test_weights_decide_how_often_a_source_is_drawn(data: Path) -> None:
    dark = Source(SourceConfig("ct", "ct", include="p2*", weight=3.0, high=65535.0), data)
    mixture = CropMixture([dark, Source(SourceConfig("s", "gray"), data)])
    constant = sum(np.ptp(mixture.draw(8, RNG(i))) == 0 for i in range(400))
    assert 260 < constant < 340


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("kind", ["bicubic", "area"])
def test_reduction_keeps_means_and_alignment(scale: int, kind: str) -> None:
    ramp = torch.arange(64.0).repeat(64, 1)[None]  # value = column; block centres know where they are
    low = reduce(ramp, scale, kind)
    assert low.shape == (1, 64 // scale, 64 // scale)
    inner = low[0, 4:-4, 4:-4]
    expected = (torch.arange(64 // scale) * scale + (scale - 1) / 2)[4:-4]
    torch.testing.assert_close(inner, expected.expand_as(inner), atol=1e-3, rtol=0)


def test_reduced_pairs_fit_each_other(data: Path) -> None:
    crops = CropMixture([Source(SourceConfig("s", "gray"), data)])
    pairs = ReducedPairs(crops, PairConfig(crop=32), 0, 2, 4, 4, build_degradation(DegradationConfig(), 4, None, None))
    sample = pairs[5]
    assert sample["image"].shape == (1, 8, 8)
    assert sample["clean"].shape == (1, 32, 32)
    assert abs(float(sample["image"].mean() - sample["clean"].mean())) < 0.02


def test_reduced_pairs_agree_where_values_leave_the_range(data: Path) -> None:
    """A CT window leaves air far below 0 and bone far above 1; blind degradation clips, or takes magnitudes."""
    crops = CropMixture([Source(SourceConfig("s", "float", low=0.4, high=0.6), data)])
    noise = NoisePopulation(1e-4, 2e-4, rician_share=0.5)
    blind = BlindConfig(narrowest=0.3, widest=0.3, isotropic_share=1.0, area_share=1.0, clip_share=0.5, noise=noise)
    degradation = build_degradation(DegradationConfig(0.0, 1.0, handmade=blind), 2, None, None)
    pairs = ReducedPairs(crops, PairConfig(crop=32, dark_share=0.0), 0, 4, 4, 2, degradation)
    for sample in (pairs[number] for number in range(len(pairs))):
        assert 0 <= float(sample["clean"].min()) < float(sample["clean"].max()) <= 1
        torch.testing.assert_close(sample["image"], reduce(sample["clean"], 2, "area"), atol=0.05, rtol=0)
