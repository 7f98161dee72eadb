"""Configurations: every shipped one loads, mistakes are named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from models.networks.registry import build_network
from training.config import parse_override, read_config
from training.data.source import list_images
from training.pipeline.config import read_pipeline_config
from training.train import CONFIGS

SHIPPED = [CONFIGS / "denoise.toml"]
PRESETS = sorted(CONFIGS.glob("pipeline-*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configuration_loads_and_builds(path: Path) -> None:
    config = read_config(path)
    assert config.name == path.stem
    for fit in (config.estimate, config.restore):
        if fit is not None:
            parameters = sum(p.numel() for p in build_network(fit.network, fit.options).parameters())
            assert parameters <= 1_000_000


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_loads_and_builds(path: Path) -> None:
    config = read_pipeline_config(path)
    build_network(config.preliminary.network, config.preliminary.options)
    build_network(config.profound.estimate.network, config.profound.estimate.options)
    restore = build_network(config.profound.restore.network, config.profound.restore.options)
    if path.stem != "pipeline-gpu":
        assert sum(p.numel() for p in restore.parameters()) <= 1_000_000


def test_held_back_images_are_in_no_source() -> None:
    """The evaluation sets and every training set of the shipped configurations do not overlap."""
    from fnmatch import fnmatch

    names = {
        "natural/bsds500": "test_97017.jpg",
        "medical/xray/nih_cxr_crop": "00000402_005.png",
        "medical/ct/deeplesion_8bit": "001234_01_01_1.png",
        "medical/ct/ny_sbu": "A072894_axial_1.png",
        "medical/mr/uih_t1_gre": "00000025.png",
    }
    for path in SHIPPED:
        for source in read_config(path).sources:
            held_back = names.get(source.folder)
            if held_back:
                excluded = any(fnmatch(held_back, glob) for glob in source.exclude.split())
                assert excluded or not fnmatch(held_back, source.include), (path.name, source.name)


@pytest.mark.shared
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_image_is_both_trained_on_and_scored(path: Path, shared: Path) -> None:
    def images(sets: list[dict[str, str]]) -> set[Path]:
        folders = ((shared / "data" / s["folder"], s.get("include", "*"), s.get("exclude", "")) for s in sets)
        return {image for folder in folders for image in list_images(*folder)}

    configuration = tomllib.loads(path.read_text())
    groups = tomllib.loads((CONFIGS / "evaluation.toml").read_text())
    with_truth = [one for group in ("photographs", "medical", "hounsfield") for one in groups[group]]
    scored = images(with_truth + configuration["validation"])
    assert len(scored) > 50
    assert images(configuration["sources"]) & scored == set()


def test_overrides_reach_nested_values() -> None:
    config = read_config(
        CONFIGS / "denoise.toml", ("restore.batch=7", "noise.highest=0.2", "restore.precision=32-true")
    )
    assert (config.restore.batch, config.noise.highest, config.restore.precision) == (7, 0.2, "32-true")


def test_unknown_key_is_named() -> None:
    with pytest.raises(ValueError, match="restore: unknown key 'stepps'"):
        read_config(CONFIGS / "denoise.toml", ("restore.stepps=7",))


def test_override_without_value_is_refused() -> None:
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_override("seed")
