"""Training patches under pixel-shuffle downsampling, and whole images in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.networks.registry import build_network
from models.networks.subsampling import Subsampled
from training.data.noise import Plane
from training.pipeline.calibration import calibrate
from training.pipeline.inference import predict, refine
from training.pipeline.record import write_plane
from training.pipeline.subimage import NoisyFile, SubImages


def dataset(folder: Path, planes: list[Plane], strides: list[int], side: int = 8, seed: int = 0) -> SubImages:
    files = []
    for i, (plane, stride) in enumerate(zip(planes, strides, strict=True)):
        write_plane(folder / f"{i}.npy", plane)
        files.append(NoisyFile(folder / f"{i}.npy", stride))
    return SubImages(files, side, seed, batch=4, steps=50)


def numbered(rows: int, columns: int) -> Plane:
    """A plane whose values tell their place."""
    return (np.arange(rows)[:, None] * 1000 + np.arange(columns)).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_patches_take_every_stride_th_pixel_of_every_phase(tmp_path: Path, stride: int) -> None:
    data = dataset(tmp_path, [numbered(40, 50)], [stride])
    phases, orientations = set(), set()
    for number in range(len(data)):
        sample = data[number]
        rows, columns = sample["image"][0] // 1000, sample["image"][0] % 1000
        assert sample["image"].shape == (1, 8, 8)
        assert sample["valid"].all()
        assert len(rows.unique()) == len(columns.unique()) == 8
        assert {float(x) for x in torch.diff(rows.unique())} == {float(stride)}
        phases.add((float(rows[0, 0] % stride), float(columns[0, 0] % stride)))
        step = sample["image"][0, 0, 1] - sample["image"][0, 0, 0], sample["image"][0, 1, 0] - sample["image"][0, 0, 0]
        orientations.add(tuple(float(x) for x in step))
    assert len(phases) == stride**2
    assert len(orientations) == 8


def test_small_images_are_filled_with_zeros_and_never_mirrored(tmp_path: Path) -> None:
    data = dataset(tmp_path, [numbered(9, 30) + 1], [2])
    for number in range(40):
        sample = data[number]
        inside = sample["valid"][0] == 1
        values = sample["image"][0][inside]
        assert len(values.unique()) == values.numel() == 8 * (5 if values.numel() == 40 else 4)
        assert (sample["image"][0][~inside] == 0).all()


def test_a_sample_depends_on_its_number_alone(tmp_path: Path) -> None:
    planes = [numbered(20, 20), numbered(31, 17)]
    first, second = (dataset(tmp_path, planes, [1, 2]) for _ in range(2))
    order = np.random.default_rng(0).permutation(len(first))
    later = {int(n): second[int(n)] for n in order}
    assert all(torch.equal(first[n]["image"], later[n]["image"]) for n in range(len(first)))
    assert {int(first[n]["index"]) for n in range(len(first))} == {0, 1}
    other = dataset(tmp_path, planes, [1, 2], seed=1)
    assert not all(torch.equal(first[n]["image"], other[n]["image"]) for n in range(8))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("name", ["dbsn", "dbsn-light"])
def test_tiles_give_what_the_whole_image_gives(name: str, stride: int) -> None:
    torch.manual_seed(0)
    network = build_network(name, {"channels": 4, "modules": 1}).eval()
    image = torch.rand(1, 1, 67, 90)
    with torch.no_grad():
        whole = Subsampled(network, stride)(image)
    tiled = predict(network, image, stride, tile=25)
    for one, other in zip(tiled, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_refinement_is_repeatable_and_keeps_the_size() -> None:
    torch.manual_seed(0)
    network = build_network("dbsn-light", {"channels": 4, "modules": 1}).eval()
    image = torch.rand(1, 1, 33, 41)
    mean, _ = predict(network, image, 2, tile=64)
    first, second = (refine(network, image, mean, tile) for tile in (64, 64))
    assert first.shape == image.shape
    assert torch.equal(first, second)
    assert not torch.equal(first, mean)


def noisy_ramp(a: float, b: float, side: int = 160) -> tuple[Plane, Plane]:
    clean = np.tile(np.linspace(0.1, 0.9, side, dtype=np.float32), (side, 1))
    noise = np.random.default_rng(7).standard_normal((side, side))
    return (clean + np.sqrt(a * clean + b) * noise).astype(np.float32), clean


@pytest.mark.parametrize(("a", "b"), [(0.02, 1e-4), (1e-6, 0.01), (0.005, 0.002)])
def test_calibration_recovers_the_law(a: float, b: float) -> None:
    noisy, clean = noisy_ramp(a, b)
    found = calibrate(noisy, clean, 0.1)
    assert found is not None
    for signal in (0.15, 0.5, 0.85):
        assert np.sqrt(found.a * signal + found.b) == pytest.approx(np.sqrt(a * signal + b), rel=0.05)
    assert found.fit_residual < 0.1
    assert 0.45 < found.share_flat < 0.51


def test_calibration_looks_at_flat_pixels_and_leaves_out_what_is_saturated() -> None:
    noisy, clean = noisy_ramp(1e-6, 0.01)
    textured = noisy + 0.3 * (np.indices(noisy.shape).sum(axis=0) % 7 == 0)  # a mean that misses texture ...
    noisy[:80], mean = textured[:80], clean.copy()
    mean[:80] += 0.2 * np.sin(np.arange(80, dtype=np.float32))[:, None]  # ... but shows that it is there
    noisy[140:] = 0.0
    found = calibrate(noisy.astype(np.float32), mean, 0.1)
    assert found is not None
    assert np.sqrt(found.a * 0.5 + found.b) == pytest.approx(0.1, rel=0.06)


def test_calibration_gives_up_on_constants() -> None:
    flat = np.full((64, 64), 0.5, np.float32)
    assert calibrate(flat, flat, 0.01) is None
