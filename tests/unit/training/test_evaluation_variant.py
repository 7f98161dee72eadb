"""Which restorers a command line can name, and what stage 1 of a run does as one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import BundleNotFound
from models.networks.blind_spot import LightBlindSpot
from models.networks.denoiser import LEVEL
from models.networks.registry import build_network
from training.data.noise import NoiseLaw, Plane
from training.evaluation.preliminary import WEIGHTS, PreliminaryRestorer, set_of
from training.evaluation.variant import DEFAULT, read_variants
from training.metric import psnr
from training.pipeline.learner import Preliminary, PreliminaryConfig, Standardised
from training.pipeline.noise_table import NoiseTable
from training.pipeline.record import PIPELINE
from training.report.model import RunModel
from training.restorer import LocalBundle
from training.train import save_weights

BUNDLES = Path(__file__).parents[3] / "models" / "bundles"
CONFIG = PreliminaryConfig(options={"channels": 16, "modules": 1}, inference_stride=1)


def noisy(sigma: float = 0.1) -> Plane:
    return (0.5 + sigma * np.random.default_rng(3).standard_normal((64, 72))).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose stage 1 answers with what the middle of the image holds on average, exactly known."""
    network = LightBlindSpot(channels=16, modules=1)
    with torch.no_grad():
        for weights in (network.tail[-1], network.variance_head[-1]):
            weights.weight.zero_()
        network.tail[-1].bias.fill_(0.5)
        network.variance_head[-1].bias.fill_(0.1)
    model = Preliminary(Standardised(network, 0.0, 1.0), NoiseTable(torch.full((3, 2), 0.01)))
    (tmp_path / WEIGHTS).parent.mkdir()
    torch.save(model.state_dict(), tmp_path / WEIGHTS)
    (tmp_path / PIPELINE).write_text(json.dumps({"config": {"preliminary": dataclasses.asdict(CONFIG)}}))
    return tmp_path


def test_stage_one_told_the_law_is_the_posterior_mean(run: Path) -> None:
    restorer = PreliminaryRestorer(run)
    told = restorer.restore(noisy(), law=NoiseLaw(0.0, 0.01))
    np.testing.assert_allclose(told, (noisy() + 0.5) / 2, atol=1e-4)  # as sure of the mean as of the pixel


def test_stage_one_fits_the_law_of_an_image_it_never_saw(run: Path) -> None:
    restorer = PreliminaryRestorer(run)
    assert restorer.noise_level(noisy()) == pytest.approx(0.1, rel=0.1)
    clean = np.full((64, 72), 0.5, np.float32)
    assert psnr(restorer.restore(noisy()), clean) > psnr(noisy(), clean) + 6


def test_correlated_noise_is_taken_apart_by_a_stride() -> None:
    white = np.random.default_rng(4).standard_normal((129, 129)).astype(np.float32)
    pairs = white[1:, 1:] + white[:-1, 1:] + white[1:, :-1] + white[:-1, :-1]
    assert set_of(white).stride == 1
    assert set_of(pairs).stride == 2
    assert set_of(np.zeros((20, 20), np.float32)).stride == 1


def test_variants_are_named_and_found(run: Path) -> None:
    texts = ["denoise@2", f"folder={BUNDLES}/denoise/2", f"path={BUNDLES}/denoise@2", f"stage 1={run}"]
    found = read_variants(texts, BUNDLES, threads=1)
    assert list(found) == [DEFAULT, "folder", "path", "stage 1"]
    assert [type(restorer) for restorer in found.values()] == [LocalBundle] * 3 + [PreliminaryRestorer]
    same = [restorer.restore(noisy()[:32, :32]) for restorer in list(found.values())[:3]]
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0], same[2])


def test_variants_that_are_not_there_or_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'A' is given twice"):
        read_variants(["A=denoise", "A=denoise"], BUNDLES, 1)
    with pytest.raises(BundleNotFound, match="no model 'nothing'"):
        read_variants([f"A={tmp_path}/nothing"], BUNDLES, 1)


def test_a_bundle_without_colour_is_told_the_level_alone() -> None:
    (restorer,) = read_variants(["denoise"], BUNDLES, 1).values()
    assert isinstance(restorer, LocalBundle)
    assert restorer.noise_level(noisy()) == pytest.approx(0.1, rel=0.1)
    restorer.parameters = LEVEL
    assert restorer.told(NoiseLaw(0.2, 0.3), np.zeros((2, 2), np.float32)).tolist() == [pytest.approx([0.2, 0.3, 0.0])]


def test_a_training_run_is_a_variant_too(tmp_path: Path) -> None:
    from tests.tiny_run import CONFIG as TINY
    from training.train import RUN as RECORD
    from training.train import build_graph, save_weights

    (tmp_path / RECORD).write_text(json.dumps({"config": dataclasses.asdict(TINY)}))
    for name, fit in TINY.fits.items():
        (tmp_path / name).mkdir()
        save_weights(build_graph(TINY, name, fit), tmp_path / name / "weights.pt")
    (restorer,) = read_variants([f"S1={tmp_path}"], BUNDLES, 1).values()
    assert isinstance(restorer, RunModel)
    assert restorer.restore(noisy()).shape == noisy().shape


@pytest.mark.parametrize("staged", [True, False])
def test_a_run_of_a_superresolver_is_scored(tmp_path: Path, staged: bool) -> None:
    network = build_network("residual-upscaler", {"scale": 2, "channels": 4, "blocks": 1})
    restore = {"network": "residual-upscaler", "options": {"scale": 2, "channels": 4, "blocks": 1}}
    run = tmp_path / "restore" if staged else tmp_path
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps({"config": {"task": "superresolve", "restore": restore}}))
    (run / "restore").mkdir()
    save_weights(network, run / "restore" / "weights.pt")
    (restorer,) = read_variants([f"A={tmp_path}"], BUNDLES, 1).values()
    plane = noisy()[:24, :31]
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(plane)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(restorer.restore(plane), expected, atol=1e-6)
    with pytest.raises(ValueError, match="estimates no noise"):
        restorer.noise_level(plane)
