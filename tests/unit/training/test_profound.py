"""Stage 3: what it reads and writes, exact resume, a warm start, the colour it is told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import read_bundle
from models.networks.denoiser import PARAMETERS, PEDESTAL
from tests.tiny_run import BOX, LEVEL, SECRET, write_stages
from training.config import Fit
from training.data.noise import correlations
from training.data.pair import PairConfig
from training.data.stream import StreamConfig
from training.export import export
from training.pipeline.profound import ProfoundConfig, real_pairs, run
from training.pipeline.record import read_audit

PAIRS = PairConfig(crop=32)
SMALL = ProfoundConfig(
    restore=Fit(
        "noise-map-unet",
        {"channels": [8, 8, 16], "blocks": [1, 1, 1, 1, 1]},
        steps=6,
        batch=4,
        warmup=1,
        pairs=PAIRS,
    ),
    estimate=Fit("noise-level", {"channels": 8, "depth": 2}, steps=4, batch=2, warmup=1, pairs=PAIRS),
    tiles=(64,),
    checkpoint_every=2,
    validate_every=100,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stages")
    write_stages(out)
    shutil.rmtree(out / "profound")
    return out


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "run"))


def weights(out: Path, graph: str = "restore") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(out / "profound" / graph / "weights.pt", weights_only=True)
    return found


def test_real_pairs_are_told_their_level_and_colour(out: Path) -> None:
    audit = read_audit(out)
    pairs = real_pairs(out, audit)
    assert len(pairs) == len(audit.noisy("train"))
    assert {np.load(pair.noisy).shape == np.load(pair.restored).shape for pair in pairs} == {True}
    coloured = [pair.parameters for pair in pairs if pair.parameters[3]]
    assert 0 < len(coloured) < len(pairs)
    np.testing.assert_allclose(coloured[0][3:], correlations(BOX), atol=1e-6)
    np.testing.assert_allclose([p.parameters[1] for p in pairs], LEVEL**2, rtol=1e-6)


def test_images_whose_noise_is_doubtful_are_left_out(out: Path) -> None:
    path, audit = out / "synthesis" / "laws.json", read_audit(out)
    laws = json.loads(path.read_text())
    doubtful = audit.noisy("train")[0]
    laws[doubtful.id]["trusted"] = False
    path.write_text(json.dumps(laws))
    assert out / doubtful.file not in {pair.noisy for pair in real_pairs(out, audit)}
    path.write_text(json.dumps({id: law | {"trusted": False} for id, law in laws.items()}))
    with pytest.raises(ValueError, match="real images alone"):
        run(out, dataclasses.replace(SMALL, streams=StreamConfig(real_share=1.0)), seed=3, accelerator="cpu", workers=0)
    path.write_text(json.dumps({id: law["parameters"] for id, law in laws.items()}))
    with pytest.raises(ValueError, match="earlier version"):
        real_pairs(out, audit)


def test_a_stopped_stage_goes_on_to_the_same_bits(out: Path, tmp_path: Path) -> None:
    run(out, SMALL, seed=3, accelerator="cpu", workers=0)
    other = Path(shutil.copytree(out, tmp_path / "other"))
    shutil.rmtree(other / "profound")
    with pytest.MonkeyPatch.context() as patch:
        from training import loop

        def stop(*arguments: object) -> None:
            if stop.left == 0:  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            stop.left -= 1  # type: ignore[attr-defined]
            real(*arguments)  # type: ignore[arg-type]

        stop.left, real = 3, loop.save_checkpoint  # type: ignore[attr-defined]
        patch.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run(other, SMALL, seed=3, accelerator="cpu", workers=0)
    run(other, SMALL, seed=3, accelerator="cpu", workers=0)
    for graph in ("estimate", "restore"):
        one, two = weights(out, graph), weights(other, graph)
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_run_can_be_exported_and_gone_on_from(out: Path, tmp_path: Path) -> None:
    run(out, SMALL, seed=3, accelerator="cpu", workers=0)
    record = (out / "profound" / "run.json").read_text()
    assert SECRET not in record
    assert set(json.loads(record)["seconds"]) == {"estimate", "restore"}
    bundle = read_bundle(export(out / "profound", tmp_path / "repository", "1", {}))
    assert bundle.manifest.parameters == [*PARAMETERS, PEDESTAL]
    assert "whoever trained them" in bundle.manifest.licence
    shutil.rmtree(out / "profound")
    still = dataclasses.replace(SMALL.restore, steps=1, learning_rate=0.0, final_learning_rate=0.0)
    later = dataclasses.replace(SMALL, start=str(bundle.folder), restore=still)
    before = torch.load(bundle.folder / "restore.pt", weights_only=True)
    run(out, later, seed=4, accelerator="cpu", workers=0)
    assert all(torch.equal(before[key], value) for key, value in weights(out).items())
    start = json.loads((out / "profound" / "run.json").read_text())["start"]
    assert (start["bundle"], start["digest"]) == ("denoise@1", bundle.digest)
    heir = export(out / "profound", tmp_path / "later", "1", {}, licence="for nobody")
    assert read_bundle(heir).manifest.licence == "for nobody"
    wider = dataclasses.replace(later, restore=dataclasses.replace(still, options={"channels": [8, 16, 16]}))
    shutil.rmtree(out / "profound")
    with pytest.raises(ValueError, match="another network or size"):
        run(out, wider, seed=4, accelerator="cpu", workers=0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_each_stream_alone_trains(out: Path, share: float) -> None:
    run(out, dataclasses.replace(SMALL, streams=StreamConfig(real_share=share)), seed=3, accelerator="cpu", workers=0)
    assert weights(out)


def test_other_earlier_stages_make_another_model(out: Path) -> None:
    run(out, SMALL, seed=3, accelerator="cpu", workers=0)
    table = out / "preliminary" / "table.json"
    table.write_text(table.read_text().replace('"fit_residual": 0.02', '"fit_residual": 0.03'))
    with pytest.raises(ValueError, match="another configuration"):
        run(out, SMALL, seed=3, accelerator="cpu", workers=0)


def test_without_clean_images_it_says_so(out: Path) -> None:
    path = out / "audit" / "audit.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"clean": []}))
    with pytest.raises(ValueError, match="add photographs"):
        run(out, SMALL, seed=3, accelerator="cpu", workers=0)
