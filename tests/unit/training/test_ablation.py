"""The variants of the ablation: what noise teaches each, and a run folder that the tables can read."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import BOX, CONFIG, LEVEL, scene, write_stages
from training.ablation import Bench, Programme, Variant, choose, read_programme
from training.config import Fit
from training.data.noise import NoiseLaw, correlations
from training.data.pair import PairConfig
from training.evaluation.ablation import noises
from training.machine import Machine
from training.pipeline.config import PipelineConfig, read_run_config
from training.pipeline.profound import ProfoundConfig
from training.report.model import RunModel

KERNELS = {"CT": BOX}
SMALL = Programme(
    Fit(
        "noise-map-unet",
        {"channels": [8, 8, 16], "blocks": [1, 1, 1, 1, 1]},
        steps=4,
        batch=2,
        warmup=1,
        pairs=PairConfig(crop=32),
    ),
    (Variant("S1", real_share=1.0), Variant("S2")),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    run = write_stages(tmp_path_factory.mktemp("run"))
    return Bench(run, PipelineConfig(profound=ProfoundConfig(estimate=CONFIG.fits["estimate"])), KERNELS)


def drawn(bench: Bench, variant: Variant, count: int = 200) -> list[NoiseLaw]:
    population, rng = bench.population(variant), np.random.default_rng(0)
    return [population.draw(rng) for _ in range(count)]


def test_the_ceiling_meets_every_noise_of_the_table(bench: Bench) -> None:
    found = {(law.slope, law.offset, law.kernel is None) for law in drawn(bench, Variant("ceiling", noise="table"))}
    wanted = [noise.law for noise in noises(KERNELS)]
    assert found == {(law.slope, law.offset, law.kernel is None) for law in wanted}


def test_a_specialist_meets_its_own_noise_alone(bench: Bench) -> None:
    levels = [law.offset**0.5 * 255 for law in drawn(bench, Variant("level-25", noise="level", level=25.0))]
    np.testing.assert_allclose(levels, 25.0)
    laws = drawn(bench, Variant("colour", noise="colour", colour="CT"))
    assert len({law.offset for law in laws}) == len(laws)
    np.testing.assert_allclose([law.parameters[3:] for law in laws], [correlations(BOX)] * len(laws), atol=1e-6)
    assert any(law.kernel is not None for law in drawn(bench, Variant("S2")))


def test_variants_become_runs_that_denoise(bench: Bench, tmp_path: Path) -> None:
    weights = {}
    for variant in SMALL.variants:
        out = tmp_path / variant.name
        bench.train(variant, SMALL, out, Machine("cpu", workers=0))
        assert RunModel(out).restore(scene(0), law=NoiseLaw(0.0, LEVEL**2)).shape == scene(0).shape
        weights[variant.name] = (out / "restore" / "weights.pt").read_bytes()
    assert weights["S1"] != weights["S2"]
    before = weights["S2"]
    shutil.rmtree(tmp_path / "S2")
    bench.train(SMALL.variants[1], SMALL, tmp_path / "S2", Machine("cpu", workers=0))
    assert (tmp_path / "S2" / "restore" / "weights.pt").read_bytes() == before


def test_another_noise_in_the_same_folder_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.train(SMALL.variants[1], SMALL, tmp_path, Machine("cpu", workers=0))
    with pytest.raises(ValueError, match="configuration"):
        bench.train(Variant("S2", noise="table"), SMALL, tmp_path, Machine("cpu", workers=0))


def test_the_shipped_programme(bench: Bench) -> None:
    programme = read_programme()
    names = [variant.name for variant in programme.variants]
    assert {"S1", "S2", "S1+S2", "ceiling"} < set(names)
    assert len(set(names)) == len(names)
    assert [variant.name for variant in choose(programme, ["S2"])] == ["S2"]
    with pytest.raises(ValueError, match="no such variant; there are S1"):
        choose(programme, ["S3"])
    with pytest.raises(ValueError, match="no set 'PET'"):
        bench.population(Variant("x", noise="colour", colour="PET"))
    with pytest.raises(ValueError, match="a level goes with"):
        Variant("x", noise="level")
    with pytest.raises(ValueError, match="none of learned"):
        dataclasses.replace(programme.variants[0], noise="white")


def test_the_configuration_of_a_run_is_read_back(bench: Bench) -> None:
    assert read_run_config(bench.run).audit.smallest == 64
