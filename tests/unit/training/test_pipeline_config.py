"""Presets and overrides of a pipeline run, and the order in which stages are run, skipped and made anew."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import BundleNotFound
from models.networks.registry import build_network
from training.machine import Machine
from training.pipeline.command import CONFIGS, PRESETS, choose_config, parse, refuse_the_impossible
from training.pipeline.config import PipelineConfig, from_record, merge, read_pipeline_config
from training.pipeline.sequence import Folders, Job, busy, duration, locked, run_all
from training.pipeline.stage import DONE, STAGES
from training.pipeline.team import Team


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_read_and_its_networks_can_be_built(preset: str) -> None:
    config = read_pipeline_config(CONFIGS / f"pipeline-{preset}.toml")
    for fit in (config.profound.restore, config.profound.estimate):
        assert sum(p.numel() for p in build_network(fit.network, fit.options).parameters()) > 1000
    assert build_network(config.preliminary.network, config.preliminary.options)


def test_cpu_preset_makes_a_model_of_at_most_a_million_parameters() -> None:
    fit = read_pipeline_config(CONFIGS / "pipeline-cpu.toml").profound.restore
    assert sum(p.numel() for p in build_network(fit.network, fit.options).parameters()) <= 1_000_000


def test_record_of_a_run_gives_its_configuration_back() -> None:
    config = read_pipeline_config(CONFIGS / "pipeline-smoke.toml", ["profound.restore.steps=7", "seed=3"])
    assert (config.profound.restore.steps, config.seed) == (7, 3)
    assert from_record(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_one_stage_alone_leaves_the_settings_of_the_others() -> None:
    record = {"preset": "smoke", "config": dataclasses.asdict(read_pipeline_config(CONFIGS / "pipeline-smoke.toml"))}
    words = ["run", "--out", "run", "--preset", "cpu"]
    alone, preset = choose_config(parse([*words, "--stage", "profound"]), record)
    smoke, cpu = (read_pipeline_config(CONFIGS / f"pipeline-{name}.toml") for name in ("smoke", "cpu"))
    assert (alone, preset) == (dataclasses.replace(smoke, profound=cpu.profound), "smoke")
    assert choose_config(parse([*words, "--set", "seed=9"]), record) == (dataclasses.replace(cpu, seed=9), "cpu")
    for more in (["--stage", "profound", "--set", "seed=9"], ["--stage", "report", "--from", "none"]):
        with pytest.raises(ValueError, match="changes the settings of this stage alone"):
            choose_config(parse([*words, *more]), record)


def test_what_is_done_needs_no_start_bundle_any_more(job: Job) -> None:
    gone = dataclasses.replace(job.config, profound=dataclasses.replace(job.config.profound, start="gone@1"))
    job = dataclasses.replace(job, config=gone)
    with pytest.raises(BundleNotFound):
        refuse_the_impossible(job)
    (job.out / "profound").mkdir(parents=True)
    (job.out / "profound" / DONE).write_text("{}")
    refuse_the_impossible(job)
    refuse_the_impossible(dataclasses.replace(job, only="report", redo=True))
    with pytest.raises(BundleNotFound):
        refuse_the_impossible(dataclasses.replace(job, redo=True))


def test_override_keeps_what_it_does_not_name() -> None:
    changed = from_record({}, ["profound.restore.steps=7"])
    assert dataclasses.replace(changed.profound.restore, steps=PipelineConfig().profound.restore.steps) == (
        PipelineConfig().profound.restore
    )


def test_options_of_a_network_replace_those_of_another() -> None:
    base = {"restore": {"network": "a", "options": {"size": "fast"}, "steps": 5}}
    change = {"restore": {"network": "b", "options": {"channels": 8}}}
    assert merge(base, change) == {"restore": {"network": "b", "options": {"channels": 8}, "steps": 5}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("profound.restore.step=7", "pipeline.profound.restore: unknown key 'step'"),
        ("audt.smallest=64", "unknown key 'audt'"),
        ("audit.test_share=0.9", "test_share"),
        ("seed", "write KEY=VALUE"),
    ],
)
def test_wrong_keys_and_values_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_record({}, [override])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in ("noisy", "clean"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").write_bytes(b"x")
    return Job(tmp_path / "run", Folders(tmp_path / "noisy", tmp_path / "clean"), PipelineConfig(), Machine())


class Recorder:
    """Stages that only note that they ran, and leave the file that the next one reads."""

    FILES = ("audit/audit.json", "preliminary/table.json", "synthesis/population.json", "profound/run.json", "report/x")

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.lines: list[str] = []

    def runners(self) -> dict[str, Callable[[Job], None]]:
        def runner(stage: str, file: str) -> Callable[[Job], None]:
            def run(job: Job) -> None:
                self.ran.append(stage)
                (job.out / file).write_text(str(getattr(job.config, stage)))

            return run

        return {stage: runner(stage, file) for stage, file in zip(STAGES, self.FILES, strict=True)}

    def __call__(self, job: Job) -> list[str]:
        self.ran = []
        run_all(job, Team(Machine()), self.runners(), self.lines.append)
        return self.ran


def test_stages_run_once_and_in_order(job: Job) -> None:
    run = Recorder()
    assert run(job) == list(STAGES)
    assert run(job) == []
    assert run.lines[-1] == "[5/5] report       done before"


def test_one_stage_runs_alone_once_those_before_it_are_done(job: Job) -> None:
    run = Recorder()
    with pytest.raises(ValueError, match="stage audit is not done"):
        run(dataclasses.replace(job, only="preliminary"))
    assert run(dataclasses.replace(job, only="audit")) == ["audit"]
    assert run(dataclasses.replace(job, only="preliminary")) == ["preliminary"]
    assert run(dataclasses.replace(job, only="preliminary", redo=True)) == ["preliminary"]


def test_another_setting_is_refused_then_redone_from_its_stage_on(job: Job) -> None:
    run = Recorder()
    run(job)
    other = dataclasses.replace(job, config=from_record({}, ["synthesis.kernels=3"]))
    with pytest.raises(ValueError, match="stage synthesis was made from something else"):
        run(other)
    assert run(dataclasses.replace(other, redo=True)) == ["synthesis", "profound", "report"]
    assert run(other) == []


def test_changed_images_are_refused(job: Job) -> None:
    run = Recorder()
    run(job)
    (job.out.parent / "noisy" / "more").write_bytes(b"y")
    with pytest.raises(ValueError, match="noisy has changed"):
        run(job)


def test_originals_may_be_gone_once_they_are_audited(job: Job) -> None:
    run = Recorder()
    run(dataclasses.replace(job, only="audit"))
    elsewhere = dataclasses.replace(job, folders=Folders(None, job.out / "nowhere"))
    assert run(elsewhere) == list(STAGES[1:])


def test_failed_stage_is_run_again(job: Job) -> None:
    run = Recorder()

    def fail(job: Job) -> None:
        raise ValueError("no noise")

    with pytest.raises(ValueError, match="no noise"):
        run_all(job, Team(Machine()), run.runners() | {"synthesis": fail}, run.lines.append)
    assert run(job) == ["synthesis", "profound", "report"]


def test_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    assert not busy(tmp_path)
    with locked(tmp_path):
        assert busy(tmp_path)
        with pytest.raises(ValueError, match="in use by another run"), locked(tmp_path):
            pass
    assert not busy(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (11_100, "3 h 05 min"), (5400, "1 h 30 min")]
)
def test_durations_are_said_as_a_person_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("options", [{"devices": 0}, {"nodes": 0}, {"threads": -1}, {"workers": -1}])
def test_impossible_machines_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        Machine(**options)
