"""Stage 2 from what stages 0 and 1 leave, with noise of known laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import scene
from training.data.noise import Kernel, NoiseLaw, add_noise, correlations, draw_kernel, kernel_of_amplitude
from training.noise.correlation import REACH, flat_patches
from training.noise.level_function import variance_factor
from training.noise.population import read_population
from training.noise.spectrum import correlation_of_kernel
from training.pipeline import synthesis
from training.pipeline.record import (
    PRELIMINARY_IMAGES,
    Audit,
    ImageSet,
    NoiseRow,
    NoisyImage,
    read_json,
    write_audit,
    write_plane,
    write_table,
)
from training.pipeline.synthesis import LAWS, POPULATION, REPORT, SynthesisConfig, read_told, told_of

DOWN, ACROSS = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")
SETS: dict[str, Kernel | None] = {
    "ct": kernel_of_amplitude(np.exp(-2 * np.pi**2 * ((0.5 * DOWN) ** 2 + (0.8 * ACROSS) ** 2))),
    "us": None,
}
LEVELS = {"ct": (0.01, 0.02), "us": (0.05, 0.1)}
IMAGES = 12


def entry(number: int, name: str) -> NoisyImage:
    id, split = f"n{number:06}", "test" if number % 6 == 5 else "train"
    return NoisyImage(
        id, f"audit/noisy/{id}.npy", "0" * 64, f"{id}.png", name, name.upper(), f"g{number // 3}", split, 160, 170, 0, 1
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after stage 2, whose stage 1 was as good as it can be."""
    out, images, rows = tmp_path_factory.mktemp("run"), [], []
    for name, kernel in SETS.items():
        for level in np.geomspace(*LEVELS[name], IMAGES):
            number = len(images)
            law = NoiseLaw(float(level**2), float(level**2) / 2, kernel)
            images.append(entry(number, name))
            clean = scene(number, 160, 170)
            write_plane(out / images[-1].file, add_noise(clean, law, np.random.default_rng(number)))
            write_plane(out / PRELIMINARY_IMAGES / f"{images[-1].id}.npy", clean)
            fit = (law.slope, law.offset, float(level))
            rows.append(NoiseRow(images[-1].id, name, *fit, *fit, True, 0.01, 0.3))
    white = [[float(down == across == 5) for across in range(11)] for down in range(11)]
    sets = {name: ImageSet(name.upper(), IMAGES, 0, 1, white, (0, 0), rician=name == "us") for name in SETS}
    write_audit(out, Audit(tuple(images), sets=sets))
    write_table(out, rows)
    synthesis.run(out, SynthesisConfig(patches=8, draws=500), seed=3)
    return out


def test_colour_of_each_set_is_learned(made: Path) -> None:
    """The audit was told that all noise is white."""
    learned = {member.name: member for member in read_population(made / POPULATION).sets}
    near = slice(REACH - 2, REACH + 3)
    for name, kernel in SETS.items():
        found = correlation_of_kernel(learned[name].kernels[0])
        np.testing.assert_allclose(found[near, near], correlation_of_kernel(kernel)[near, near], atol=0.05)
    assert len(learned["ct"].kernels) > 1  # of single patients too


def test_levels_of_each_set_are_learned(made: Path) -> None:
    for member in read_population(made / POPULATION).sets:
        drawn = np.array([member.density.draw(np.random.default_rng(i)) for i in range(300)])
        low, high = LEVELS[member.name]
        levels = np.sqrt(np.exp(drawn[:, 0]) * 0.5 + np.exp(drawn[:, 1]))
        assert low * 0.85 < np.quantile(levels, 0.05) < np.quantile(levels, 0.95) < high * 1.15
        np.testing.assert_allclose(np.exp(drawn[:, 0] - drawn[:, 1]), 2, rtol=0.5)  # a and b go together
        assert member.rician == (member.name == "us")


def test_draws_cover_twice_the_observed_range(made: Path) -> None:
    population = read_population(made / POPULATION)
    laws = [population.draw(np.random.default_rng(i)) for i in range(3000)]
    slopes = np.array([law.slope for law in laws if law.rician])
    assert slopes.min() < 0.05**2 * 0.7
    assert slopes.max() > 0.1**2 * 1.4


def test_fit_report_sets_observed_beside_drawn(made: Path) -> None:
    report = read_json(made / REPORT)
    assert set(report["sets"]) == set(SETS)
    for name, found in report["sets"].items():
        assert found["images"] == 10  # those to train on
        assert found["ks"]["density"]["level"] < 0.2
        quantiles = found["quantiles"]
        np.testing.assert_allclose(quantiles["density"]["level"], quantiles["observed"]["level"], rtol=0.25)
        correlation = found["correlation"]
        expected = correlation_of_kernel(SETS[name])[REACH, REACH + 1]
        for side in ("observed", "kernels"):
            assert correlation[side]["across_1"][0] == pytest.approx(expected, abs=0.06)


def test_rerun_writes_the_same_bytes(made: Path) -> None:
    before = [(made / name).read_bytes() for name in (POPULATION, REPORT, LAWS)]
    synthesis.run(made, SynthesisConfig(patches=8, draws=500), seed=3)
    assert before == [(made / name).read_bytes() for name in (POPULATION, REPORT, LAWS)]


def test_audit_stands_in_where_no_patch_is_flat() -> None:
    kernel = draw_kernel(np.random.default_rng(4))
    correlation = correlation_of_kernel(kernel)
    record = ImageSet("CT", 1, 0, 1, correlation.tolist(), (0, 0))
    audit = Audit((), sets={"empty": record})
    (found,) = synthesis.measure(audit, "empty", {}, SynthesisConfig())
    np.testing.assert_array_equal(found, correlation)


def test_nothing_to_learn_from_is_named(tmp_path: Path) -> None:
    write_audit(tmp_path, Audit(()))
    write_table(tmp_path, [])
    with pytest.raises(ValueError, match="noise of no training image"):
        synthesis.run(tmp_path, SynthesisConfig(), seed=0)
    with pytest.raises(ValueError, match="weight_power"):
        SynthesisConfig(weight_power=2)


def test_laws_are_kept_by_image(made: Path) -> None:
    told = read_told(made)
    assert len(told) == 20  # training images alone
    assert told["n000000"].parameters[1] == pytest.approx(LEVELS["ct"][0] ** 2 / 2, rel=0.5)


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_a_law_is_trusted_where_flat_patches_bear_it_out(factor: float) -> None:
    kernel = SETS["ct"]
    noisy = add_noise(np.full((300, 300), 0.5, np.float32), NoiseLaw(0.0, 0.01, kernel), np.random.default_rng(0))
    patches, correlation = flat_patches(noisy), correlation_of_kernel(kernel)
    found = variance_factor(patches, (1e-9, 0.01 / factor), correlation)
    told = told_of((1e-9, 0.01), found, patches, correlation_of_kernel(None))
    assert told.trusted == (factor == 1.0)
    assert told.parameters[3:] == pytest.approx(correlations(kernel), abs=0.12)


def test_few_flat_patches_tell_neither_level_nor_colour() -> None:
    noisy = np.random.default_rng(0).normal(0.5, 0.1, (70, 70)).astype(np.float32)
    told = told_of((1e-9, 0.01), 1.0, flat_patches(noisy), correlation_of_kernel(SETS["ct"]))
    assert not told.trusted
    assert told.parameters[3:] == pytest.approx(correlations(SETS["ct"]), abs=1e-3)
