"""Stage 1 as a whole: blind, resumable to the bit, and right about noise that is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import training.loop
import training.pipeline.preliminary as stage
from models.networks.blindness import own_derivatives
from training.data.noise import Kernel, NoiseLaw, Plane, add_noise
from training.noise.spectrum import correlation_of_kernel
from training.pipeline.learner import Phase, PreliminaryConfig, build_preliminary
from training.pipeline.record import (  # fmt: skip
    Audit,
    ImageSet,
    NoisyImage,
    read_audit,
    read_plane,
    read_table,
    write_audit,
    write_plane,
)

TINY = PreliminaryConfig(
    options={"channels": 8, "modules": 1},
    mean=Phase(4),
    variance=Phase(4),
    joint=Phase(4),
    batch=2,
    side=16,
    checkpoint_every=2,
    precision="32-true",
)
LEARNING = dataclasses.replace(
    TINY,
    options={"channels": 16, "modules": 3},
    mean=Phase(160, learning_rate=4e-3, warmup=10),
    variance=Phase(20, learning_rate=4e-3, warmup=10),
    joint=Phase(40, warmup=10),
    batch=4,
    side=32,
    ema=0.95,
)
LAWS = [NoiseLaw(0.0, 0.06**2), NoiseLaw(0.012, 0.03**2), NoiseLaw(0.004, 0.08**2), NoiseLaw(0.0, 0.12**2)]


def blur(width: float, side: int) -> Kernel:
    """A Gaussian kernel of unit energy."""
    taps = np.exp(-0.5 * ((np.arange(side) - side // 2) / width) ** 2)
    kernel = np.outer(taps, taps)
    return (kernel / np.sqrt((kernel**2).sum())).astype(np.float32)


def scene(number: int, side: int = 112) -> Plane:
    """A smooth picture with a few sharp edges, of values within 0.1 to 0.9."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:side, :side] / side
    picture = 0.35 + 0.2 * np.sin(
        5 * rows * rng.uniform(0.5, 1) + 4 * columns * rng.uniform(0.5, 1) + rng.uniform(0, 6)
    )
    for _ in range(4):
        centre, radius = rng.uniform(0.1, 0.9, 2), rng.uniform(0.08, 0.25)
        picture[np.hypot(rows - centre[0], columns - centre[1]) < radius] += rng.uniform(-0.25, 0.35)
    return np.clip(picture, 0.1, 0.9).astype(np.float32)


def lay_out(out: Path, sets: dict[str, tuple[int, Kernel | None]], count: int = 4, side: int = 112) -> None:
    """An audit of noisy scenes: name of a set -> stride, kernel. The last image of each set is for testing."""
    images = []
    for name, (_, kernel) in sets.items():
        for i in range(count):
            id = f"n{len(images) + 1:06d}"
            law = dataclasses.replace(LAWS[i % len(LAWS)], kernel=kernel)
            clean = scene(len(images), side)
            noisy = add_noise(clean, law, np.random.default_rng(50 + len(images)))
            write_plane(out / "audit" / "noisy" / f"{id}.npy", noisy)
            write_plane(out / "clean" / f"{id}.npy", clean)
            split = "test" if i == count - 1 else "train"
            images.append(NoisyImage(id, f"audit/noisy/{id}.npy", "", id, name, "CT", id, split, side, side, 0.0, 1.0))
    records = {
        name: ImageSet("CT", count, 0.0, 1.0, correlation_of_kernel(kernel).tolist(), (0.0, 0.0), stride)
        for name, (stride, kernel) in sets.items()
    }
    write_audit(out, Audit(tuple(images), sets=records))


def run(out: Path, config: PreliminaryConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    stage.run(out, config, seed=seed, accelerator="cpu", threads=1, workers=0)
    weights: dict[str, torch.Tensor] = torch.load(out / "preliminary" / "weights.pt", weights_only=True)
    return weights


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned white and coloured noise of known law."""
    out = tmp_path_factory.mktemp("learned")
    lay_out(out, {"white": (1, None), "narrow": (2, blur(0.6, 3)), "wide": (3, blur(0.8, 5))})
    run(out, LEARNING)
    return out


def level_errors(out: Path, name: str) -> list[float]:
    """Estimated / true deviation - 1 at the 10th, 50th and 90th percentile of each clean image's signal."""
    errors = []
    for i, row in enumerate(r for r in read_table(out) if r.set == name):
        law = LAWS[i % len(LAWS)]
        for signal in np.quantile(read_plane(out, f"clean/{row.id}.npy"), (0.1, 0.5, 0.9)):
            errors.append(np.sqrt((row.a * signal + row.b) / (law.slope * signal + law.offset)) - 1)
    return errors


@pytest.mark.parametrize(("name", "tolerance"), [("white", 0.15), ("narrow", 0.25), ("wide", 0.25)])
def test_table_recovers_the_noise(learned: Path, name: str, tolerance: float) -> None:
    errors = np.abs(level_errors(learned, name))
    assert np.max(errors) < tolerance, np.round(level_errors(learned, name), 3)


def test_preliminary_images_are_cleaner(learned: Path) -> None:
    for image in read_audit(learned).images:
        clean = read_plane(learned, f"clean/{image.id}.npy")
        noisy, restored = read_plane(learned, image.file), read_plane(learned, f"preliminary/images/{image.id}.npy")
        assert np.mean((restored - clean) ** 2) < 0.5 * np.mean((noisy - clean) ** 2), image.set


def test_network_is_blind_at_the_trained_weights(learned: Path) -> None:
    model = build_preliminary(LEARNING, read_audit(learned), learned, seed=1)
    model.load_state_dict(torch.load(learned / "preliminary" / "weights.pt", weights_only=True))
    image = torch.rand(1, 1, 41, 41, generator=torch.Generator().manual_seed(3))
    own, other = own_derivatives(model.network, image, [(r, c) for r in range(0, 41, 4) for c in range(0, 41, 4)])
    assert own == 0.0
    assert other > 1e-3
    record = json.loads((learned / "preliminary" / "preliminary.json").read_text())
    assert record["blind_spot"]["own_pixel"] == 0.0


def test_residual_never_falls_below_the_noise(learned: Path) -> None:
    """A network that saw its pixel would leave no residual at all."""
    record = json.loads((learned / "preliminary" / "preliminary.json").read_text())
    assert all(0.97 < share < 2 for share in record["residual_share"].values())


def test_images_not_trained_on_are_in_the_table(learned: Path) -> None:
    audit, table = read_audit(learned), read_table(learned)
    assert [row.id for row in table] == [image.id for image in audit.images]
    assert audit.noisy("test")
    assert all(row.raw_level > 0 and row.bias_corrected and row.share_flat > 0.1 for row in table)


class StopError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_run_stopped_in_any_phase_ends_with_the_same_bytes(
    tmp_path: Path, phase: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets: dict[str, tuple[int, Kernel | None]] = {"a": (1, None), "b": (2, None)}
    for name in ("whole", "broken"):
        lay_out(tmp_path / name, sets, count=2, side=40)
    whole = run(tmp_path / "whole", TINY)
    real, calls = training.loop.train_step, 0

    def stopping(state, objective, batch):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 4 * phase + 4:  # the last step of the phase: behind its only checkpoint
            raise StopError
        return real(state, objective, batch)

    monkeypatch.setattr(training.loop, "train_step", stopping)
    with pytest.raises(StopError):
        run(tmp_path / "broken", TINY)
    monkeypatch.setattr(training.loop, "train_step", real)
    resumed = run(tmp_path / "broken", TINY)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    for name in ("table.json", "images/n000001.npy", "images/n000004.npy"):
        first, second = (tmp_path / run_name / "preliminary" / name for run_name in ("whole", "broken"))
        assert first.read_bytes() == second.read_bytes()


def test_run_stopped_between_images_goes_on_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"a": (1, None)}, count=3, side=40)
    real, seen = stage.restore, []

    def stopping(model, image, *more):  # type: ignore[no-untyped-def]
        if len(seen) == 2:
            raise StopError
        seen.append(image.id)
        return real(model, image, *more)

    monkeypatch.setattr(stage, "restore", stopping)
    with pytest.raises(StopError):
        run(tmp_path, TINY)
    assert not (tmp_path / "preliminary" / "table.json").exists()
    monkeypatch.setattr(
        stage, "restore", lambda model, image, *more: seen.append(image.id) or real(model, image, *more)
    )
    run(tmp_path, TINY)
    assert seen == ["n000001", "n000002", "n000003"]
    assert len(read_table(tmp_path)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"noise": "cnn-est"},
        {"likelihood": "constrained", "distance": "l1"},
        {"network": "ss-bsn", "options": {"channels": 8, "modules": 2, "attended": 1}, "refine": True, "gain": 0.95},
        {"network": "dbsn", "options": {"channels": 8, "modules": 1}, "optimizer": "adamw", "inference_stride": 1},
    ],
    ids=lambda change: next(iter(change.values())),
)
def test_every_alternative_runs(tmp_path: Path, change: dict[str, object]) -> None:
    lay_out(tmp_path, {"a": (2, None)}, count=2, side=41)
    run(tmp_path, dataclasses.replace(TINY, **change))  # type: ignore[arg-type]
    for row in read_table(tmp_path):
        assert row.a > 0
        assert row.b > 0
        assert np.isfinite(read_plane(tmp_path, f"preliminary/images/{row.id}.npy")).all()
    assert read_plane(tmp_path, "preliminary/images/n000002.npy").shape == (41, 41)


def test_constant_and_tiny_images_are_no_trouble(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a": (5, None)}, count=3, side=7)
    write_plane(tmp_path / "audit" / "noisy" / "n000001.npy", np.full((7, 7), 0.25, np.float32))
    run(tmp_path, TINY)
    assert [row.bias_corrected for row in read_table(tmp_path)] == [False] * 3
    assert np.isfinite(read_plane(tmp_path, "preliminary/images/n000001.npy")).all()


@pytest.mark.parametrize(
    "wrong", [{"noise": "none"}, {"likelihood": "l2"}, {"gain": 0.5}, {"side": 0}, {"distance": "psnr"}]
)
def test_wrong_options_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreliminaryConfig(**wrong)  # type: ignore[arg-type]


def test_network_that_is_not_blind_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a": (1, None)}, count=2, side=24)
    with pytest.raises(ValueError, match="no blind-spot network"):
        run(tmp_path, dataclasses.replace(TINY, network="noise-level", options={"channels": 8, "depth": 2}))


def test_audit_without_training_images_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a": (1, None)}, count=1, side=24)
    with pytest.raises(ValueError, match="no noisy image"):
        run(tmp_path, TINY)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a": (1, None)}, count=2, side=24)
    run(tmp_path, TINY)
    with pytest.raises(ValueError, match="another configuration"):
        run(tmp_path, TINY, seed=1)
