"""Parts of a super-resolver's run: presets, audit, crops, acceptance, and what goes on from another scale."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import BundleNotFound
from models.networks.registry import build_network
from tests.noisy_folder import save
from tests.picture_folder import pieces
from tests.tiny_run import set_population
from training import start
from training.degradation.bicubic import reduce_plane
from training.degradation.config import DegradationConfig
from training.evaluation.image import HeldBack
from training.evaluation.superresolution import bicubic
from training.machine import Machine
from training.noise.population import LearnedPopulation, write_population
from training.pipeline.intake import list_files, matches
from training.pipeline.preset import CONFIGS
from training.pipeline.record import AuditedImage
from training.pipeline.sequence import Job, refuse_other_configurations, run_all
from training.pipeline.stage import public_config
from training.pipeline.team import Team
from training.report.acceptance import ABSENT, FAIL, PASS
from training.superresolution import audit, degradation, restoration
from training.superresolution.acceptance import accept
from training.superresolution.command import RUNNERS, Folders, choose_config, parse
from training.superresolution.config import SUPERRESOLVE_PRESETS, SuperresolveConfig, for_scale
from training.superresolution.degradation import LearningConfig
from training.superresolution.plan import plan_of, superresolver
from training.superresolution.record import PictureAudit, of_split, read_pictures
from training.superresolution.score import MODEL, VARIANT, cases, constancy, promised_consistency, score_all, table
from training.superresolution.source import CropConfig, crops_of

PRESETS = sorted(CONFIGS.glob("superresolve-*.toml"))
OPTIONS = ["--out", "run", "--preset", "smoke"]


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_loads_and_builds_at_both_scales(path: Path, scale: int) -> None:
    overrides = [f"degradation.scale={scale}"]
    config = SUPERRESOLVE_PRESETS.read(path, overrides, lambda document: for_scale(document, scale))
    restoration.check(dataclasses.replace(config.restore, keep=0.0), scale)  # of whose weights, a call says
    fit = config.restore.at_scale(scale).restore
    assert config.adversarial.pairs.crop % scale == 0
    if path.stem != "superresolve-gpu":
        network = build_network(fit.network, fit.options)
        assert sum(p.numel() for p in network.parameters()) <= 1_000_000
    assert SUPERRESOLVE_PRESETS.from_record(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.shared
def test_release_trains_on_nothing_that_is_scored(shared: Path) -> None:
    import tomllib

    config = SUPERRESOLVE_PRESETS.read(CONFIGS / "superresolve-release.toml", adapt=lambda d: for_scale(d, 2)).audit
    groups = tomllib.loads((CONFIGS / "evaluation.toml").read_text())
    names = {path.relative_to(shared / "data").as_posix() for path in
             list_files(shared / "data", config.include, config.exclude)}  # fmt: skip
    trained = {name for name in names if not matches(name, config.test)}
    scored = {
        path.relative_to(shared / "data").as_posix()
        for group in ("photographs", "medical", "hounsfield")
        for one in groups[group]
        for path in (shared / "data" / one["folder"]).glob(one.get("include", "*"))
    }
    assert len(trained) > 300
    assert trained & scored == set()


def test_scale_and_degradation_stay_as_they_were_named() -> None:
    first, preset = choose_config(parse([*OPTIONS, "--scale", "4", "--degradation", "blind"]), {})
    assert (first.degradation.scale, first.degradation.kind, preset) == (4, "blind", "smoke")
    assert first.restore.fit.pairs.crop == 96  # the preset's own for x4
    record = {"config": json.loads(json.dumps(dataclasses.asdict(first))), "preset": "smoke"}
    again, _ = choose_config(parse(["--out", "run"]), record)
    assert again == first
    other, _ = choose_config(parse(["--out", "run", "--preset", "cpu"]), record)
    assert (other.degradation.scale, other.degradation.kind) == (4, "blind")
    alone, _ = choose_config(parse([*OPTIONS, "--stage", "report", "--set", "report.images=3"]), record)
    words = ["--out", "run", "--preset", "cpu", "--stage", "degradation"]
    for more in ([], ["--scale", "4", "--degradation", "blind"]):
        stage, _ = choose_config(parse([*words, *more]), record)
        assert (stage.degradation.scale, stage.degradation.kind) == (4, "blind")
    assert alone == dataclasses.replace(first, report=dataclasses.replace(first.report, images=3))
    with pytest.raises(ValueError, match="scale is missing"):
        choose_config(parse(OPTIONS), {})
    with pytest.raises(ValueError, match="changes the settings of this stage alone"):
        choose_config(parse([*OPTIONS, "--stage", "report", "--scale", "2"]), record)


def test_a_kind_puts_aside_the_shares_of_a_mix() -> None:
    words = [*OPTIONS, "--scale", "2"]
    mixed, _ = choose_config(parse([*words, "--set", "degradation.shares={pdm=1,blind=3}"]), {})
    record = {"config": json.loads(json.dumps(dataclasses.asdict(mixed))), "preset": "smoke"}
    other, _ = choose_config(parse(["--out", "run", "--set", "degradation.shares={bicubic=1}"]), record)
    assert (other.degradation.mixture.pdm, other.degradation.mixture.bicubic) == (0, 1)
    plain, _ = choose_config(parse(["--out", "run", "--degradation", "bicubic"]), record)
    assert (plain.degradation.mixture.pdm, plain.degradation.mixture.blind) == (0, 0)
    again, _ = choose_config(parse(["--out", "run", "--degradation", "mix"]), record)
    assert again == mixed
    with pytest.raises(ValueError, match="only a mix has shares"):
        choose_config(parse([*words, "--degradation", "blind", "--set", "degradation.shares={pdm=1}"]), {})
    with pytest.raises(ValueError, match="name the --preset, too"):
        choose_config(parse(["--out", "run", "--scale", "4"]), record)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("restore.fit.steps=abc", "restore.fit.steps: 'abc' is not a whole number"),
        ("restore.fit.steps=true", "restore.fit.steps: True is not a whole number"),
        ("degradation=0.5", "degradation: 0.5 is not a table"),
        ("degradation.shares=0.5", "degradation.shares: 0.5 is not a table"),
        ('audit.include="ct"', "audit.include: 'ct' is not a list"),
        ('audit.rules=[{sets="ct",group="("}]', r"rules of ct: group '\(' is no pattern"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_config(parse([*OPTIONS, "--scale", "2", "--set", override]), {})


def test_a_network_whose_tiles_leave_no_room_is_refused_before_training() -> None:
    words = [*OPTIONS, "--set", "restore.fit.network=ssformer-upscaler", "--set", "restore.fit.options={}"]
    config, _ = choose_config(parse([*words, "--scale", "2"]), {})
    restoration.check(config.restore, 2)  # of the preset's tiles one fits
    with pytest.raises(ValueError, match=r"one of \d+ or more is needed"):
        restoration.check(dataclasses.replace(config.restore, tiles=(64,)), 2)


def test_shares_replace_those_of_the_kind() -> None:
    assert LearningConfig(kind="mix").mixture.pdm > 0
    mixture = LearningConfig(kind="mix", shares={"blind": 3, "bicubic": 1}).mixture
    assert (mixture.pdm, mixture.blind, mixture.bicubic) == (0.0, 3.0, 1.0)
    with pytest.raises(ValueError, match=r"degradation\.shares: 'blur'"):
        LearningConfig(shares={"blur": 1.0})


def test_variant_is_a_stage_only_where_it_is_asked_for() -> None:
    assert "adversarial" not in superresolver(adversarial=False).stages
    record = {"task": "superresolve", "config": {"adversarial": {"train": True}}}
    assert plan_of(record).stages == ("audit", "degradation", "restore", "adversarial", "report")
    assert plan_of({"config": {}}).task == "denoise"


def test_settings_that_name_files_are_hashed_in_public() -> None:
    config = json.loads(json.dumps(dataclasses.asdict(SuperresolveConfig())))
    config["adversarial"]["ensemble"]["features"] = "/home/mueller/vgg.pth"
    config["restore"]["start"] = "/home/mueller/bundle"
    config["audit"]["test"] = ["MUELLER/*"]
    config["report"]["terms"] = {"MUELLER/*": "own"}
    shown = json.dumps(public_config(config, superresolver(adversarial=True)))
    assert "mueller" not in shown.lower()
    assert json.loads(shown)["adversarial"]["ensemble"]["l1"] == config["adversarial"]["ensemble"]["l1"]


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    """Colour photographs, and the same picture twice: as it is, and turned in another format."""
    for number, pixels in enumerate(pieces(96)[:6]):
        save(tmp_path / "hr" / "photo" / f"IMG_{number}.png", np.stack([pixels, pixels, pixels // 2], axis=2))
    pixels = pieces(96)[6]
    save(tmp_path / "hr" / "grey" / "one.png", pixels)
    save(tmp_path / "hr" / "grey" / "third.png", pieces(96)[7])
    save(tmp_path / "hr" / "grey" / "other.tif", np.rot90(pixels).copy())
    for name, piece in zip("xyz", pieces(96)[:3], strict=True):
        save(tmp_path / "hr" / "ct" / f"{name}.png", piece.astype(np.uint16) * 100)
    return tmp_path / "hr"


def test_twins_and_patients_stay_together_and_photographs_apart(hr: Path, tmp_path: Path) -> None:
    audit.run(tmp_path / "run", audit.AuditConfig(test_share=0.3), hr=hr, lr=None, seed=1)
    found = read_pictures(tmp_path / "run")
    groups = {image.source: image.group for image in found.high}
    assert groups["grey/one.png"] == groups["grey/other.tif"]
    assert len({group for source, group in groups.items() if source.startswith("photo")}) == 6
    split = {image.group: image.split for image in found.high}
    assert all(split[image.group] == image.split for image in found.high)
    sets = found.high_sets
    assert sets["photo"].photographs
    assert not sets["ct"].photographs
    assert (sets["photo"].low, sets["photo"].high) == (0.0, 255.0)
    assert any("colour" in warning for warning in sets["photo"].warnings)
    assert any("high-resolution images: 12" in line for line in audit.findings(tmp_path / "run"))


def test_colour_images_of_one_patient_stay_together(tmp_path: Path) -> None:
    for number, pixels in enumerate(pieces(96)[:6]):
        save(tmp_path / "hr" / "endoscopy" / f"p{number // 3}_{number}.png", np.stack([pixels] * 3, axis=2))
    audit.run(tmp_path / "run", audit.AuditConfig(test_share=0.3), hr=tmp_path / "hr", lr=None, seed=1)
    found = read_pictures(tmp_path / "run")
    assert len({image.group for image in found.high}) == 2
    assert not found.high_sets["endoscopy"].photographs


def test_named_images_are_the_ones_held_back(hr: Path, tmp_path: Path) -> None:
    config = audit.AuditConfig(test=("photo/IMG_[01].png",))
    audit.run(tmp_path / "run", config, hr=hr, lr=None, seed=1)
    held = {image.source for image in of_split(read_pictures(tmp_path / "run").high, "test")}
    assert held == {"photo/IMG_0.png", "photo/IMG_1.png"}
    with pytest.raises(ValueError, match=r"audit\.test names no high-resolution image"):
        audit.run(tmp_path / "other", audit.AuditConfig(test=("none/*",)), hr=hr, lr=None, seed=1)


def test_crops_come_from_photographs_and_medical_images_as_asked(hr: Path, tmp_path: Path) -> None:
    audit.run(tmp_path / "run", audit.AuditConfig(test_share=0.0), hr=hr, lr=None, seed=0)
    found = read_pictures(tmp_path / "run")
    mixture = crops_of(tmp_path / "run", found, CropConfig(medical_share=0.25))
    weights = {source.config.name: source.config.weight for source in mixture.sources}
    assert weights["ct"] == pytest.approx(0.25)
    assert sum(weights.values()) == pytest.approx(1.0)
    crop = mixture.draw(64, np.random.default_rng(0))
    assert crop.shape == (64, 64)
    assert crop.dtype == np.float32
    assert np.array_equal(crop, mixture.draw(64, np.random.default_rng(0)))


def test_network_of_another_scale_gives_all_but_its_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = restoration.RestoreConfig()
    two, four = config.at_scale(2), config.at_scale(4)
    first = restoration.begin_network(two, "")
    bundle = type("Bundle", (), {})()
    bundle.reference, bundle.folder = "superresolve-x2@9", tmp_path
    bundle.manifest = type("Manifest", (), {"scale": 2, "files": ["restore.pt"], "network": "residual-upscaler"})()
    for module in (restoration, start):
        monkeypatch.setattr(module, "start_bundle", lambda reference: bundle)
    torch.save(first.state_dict(), tmp_path / "restore.pt")
    grown = restoration.begin_network(four, "superresolve-x2@9")
    before, after = first.state_dict(), grown.state_dict()
    kept = [name for name in after if name in before and torch.equal(after[name], before[name])]
    assert set(after) - set(kept) == {"tail.weight"}
    assert grown(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 32, 32)
    deeper = dataclasses.replace(four, restore=dataclasses.replace(four.restore, options={"scale": 4, "blocks": 9}))
    with pytest.raises(ValueError, match="is of another network or size"):
        restoration.begin_network(deeper, "superresolve-x2@9")


def test_result_keeps_a_share_of_what_training_began_with(tmp_path: Path) -> None:
    before, after = (build_network("residual-upscaler", {"scale": 2, "channels": 4, "blocks": 1}) for _ in range(2))
    begun = {name: weight.clone() for name, weight in before.state_dict().items()}
    torch.save(after.state_dict(), tmp_path / "weights.pt")
    restoration.blend(tmp_path / "weights.pt", before, 0.25)
    for name, weight in torch.load(tmp_path / "weights.pt", weights_only=True).items():
        torch.testing.assert_close(weight, 0.75 * after.state_dict()[name] + 0.25 * begun[name])


def test_what_cannot_be_kept_is_refused() -> None:
    config = restoration.RestoreConfig()
    with pytest.raises(ValueError, match="only with --from"):
        restoration.check(dataclasses.replace(config, keep=0.5), 2)
    with pytest.raises(ValueError, match="no share"):
        dataclasses.replace(config, keep=1.0)


def test_unknown_start_is_refused() -> None:
    with pytest.raises(BundleNotFound):
        restoration.check(dataclasses.replace(restoration.RestoreConfig(), start="nothing@1"), 2)


def scored_of(models):  # type: ignore[no-untyped-def]
    images = [HeldBack("photographs", str(i), piece / np.float32(255)) for i, piece in enumerate(pieces(64)[:3])]
    return score_all(cases(images, 2, None), 2, models)


def sharper(low: np.ndarray) -> np.ndarray:
    """Bicubic interpolation whose result, reduced again, is made to agree with the input: always a gain."""
    large = bicubic(2, low)
    for _ in range(8):
        large = large + bicubic(2, low - reduce_plane(large, 2))
    return large


def test_acceptance_tells_a_good_network_from_a_shifted_one() -> None:
    models = {MODEL: sharper, VARIANT: lambda low: np.roll(bicubic(2, low), 1, axis=0)}
    scored = scored_of(models)
    found = accept(table(scored), DegradationConfig(), models, 2)
    assert {row["check"]: row["verdict"] for row in found[MODEL]["rows"]} == {
        "better than bicubic": PASS, "grid": PASS, "consistency": PASS, "constant": PASS,
    }  # fmt: skip
    assert found[MODEL]["passed"]
    assert {row["check"]: row["verdict"] for row in found[VARIANT]["rows"]}["grid"] == FAIL
    assert not found[VARIANT]["passed"]


def test_acceptance_without_held_back_images_is_none() -> None:
    found = accept([], DegradationConfig(), {MODEL: sharper}, 2)[MODEL]
    assert not found["passed"]
    assert {row["verdict"] for row in found["rows"]} == {ABSENT, PASS}


def test_constancy_sees_drift_and_a_wrong_size() -> None:
    assert constancy(sharper, 2) < 1e-5
    assert constancy(lambda low: bicubic(2, low) + np.float32(0.01), 2) == pytest.approx(0.01, abs=1e-5)
    assert constancy(lambda low: low, 2) == float("inf")


def test_promised_consistency_lies_below_every_image() -> None:
    models = {MODEL: lambda low: bicubic(2, low)}
    scored = scored_of(models)
    promised = promised_consistency(scored, MODEL, 2, models[MODEL])
    assert promised is not None
    for one in scored:
        error = np.mean((reduce_plane(models[MODEL](one.case.low), 2) - one.case.low) ** 2)
        assert 10 * np.log10(np.ptp(one.case.low) ** 2 / error) > promised + 2.9
    assert promised_consistency([], MODEL, 2, models[MODEL]) is None
    assert promised_consistency(scored, MODEL, 2, lambda low: 9 - bicubic(2, low)) == 0  # a manifest holds no less


@pytest.fixture
def audited(hr: Path, tmp_path: Path) -> Path:
    """A run whose audit is done, without low-resolution images."""
    audit.run(tmp_path / "run", audit.AuditConfig(test_share=0.0), hr=hr, lr=None, seed=0)
    return tmp_path / "run"


def test_noise_of_a_denoisers_run_is_taken(audited: Path, tmp_path: Path) -> None:
    people = LearnedPopulation((set_population("ct/abdomen"),))
    write_population(tmp_path / "population.json", people)
    config, machine = LearningConfig(kind="blind"), Machine("cpu")
    degradation.run(audited, config, noise=tmp_path / "population.json", seed=0, machine=machine)
    assert (audited / degradation.POPULATION).read_bytes() == (tmp_path / "population.json").read_bytes()
    assert degradation.read_mixture(audited) == (2, config.mixture)
    told = list(degradation.findings(audited))
    assert told == ["images are made small by: blind 100%", "noise measured in 1 sets of low-resolution images"]
    low = degradation.read_degradation(audited).degrade(np.full((64, 48), 0.5, np.float32), np.random.default_rng(3))
    assert low.shape == (32, 24)


def test_without_noise_to_measure_the_broad_population_is_drawn_from(audited: Path) -> None:
    degradation.run(audited, LearningConfig(kind="blind", scale=4), noise=None, seed=0, machine=Machine("cpu"))
    assert degradation.found_population(audited) is None
    assert any("broad population" in line for line in degradation.findings(audited))
    with pytest.raises(ValueError, match="name their folder with --lr"):
        degradation.run(audited, LearningConfig(kind="pdm"), noise=None, seed=0, machine=Machine("cpu"))


def test_stage_that_takes_no_time_is_made_anew_without_being_asked(tmp_path: Path) -> None:
    places = Folders(tmp_path / "hr", None, None)
    (tmp_path / "hr").mkdir()
    (tmp_path / "hr" / "image").write_bytes(b"x")
    ran: list[str] = []

    def runner(stage: str) -> Callable[[Job], None]:
        return lambda job: ran.append(stage)

    runners = {stage: runner(stage) for stage in RUNNERS}
    job = Job(tmp_path / "run", places, SuperresolveConfig(), Machine(), plan=superresolver(adversarial=False))
    run_all(job, Team(Machine()), runners, lambda line: None)
    assert ran == ["audit", "degradation", "restore", "report"]
    more = dataclasses.replace(job.config, adversarial=dataclasses.replace(job.config.adversarial, train=True))
    shorter = dataclasses.replace(more, report=dataclasses.replace(more.report, images=3))
    ran.clear()
    later = dataclasses.replace(job, config=shorter, plan=superresolver(adversarial=True))
    refuse_other_configurations(later)
    run_all(later, Team(Machine()), runners, lambda line: None)
    assert ran == ["adversarial", "report"]


def test_images_too_small_to_learn_from_are_counted() -> None:
    small, large = (
        AuditedImage("h1", "h1.npy", "0", "h1.png", "ct", "CT", "0", "train", side, 200, 0.0, 1.0) for side in (90, 100)
    )
    found = list(degradation.too_small(PictureAudit(high=(small, large), low=(large,)), 48, 2))
    assert found == ["note: nothing was learned from 1 high-resolution images of less than 96 x 96 pixels"]
