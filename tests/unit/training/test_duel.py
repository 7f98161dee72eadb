"""Two players in one loop: exact resume, frozen opponents, the log, and a duel that converges."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import Dataset

import training.duel
from training.duel import DuelFit, Rules, fit_duel
from training.loop import Batch


class Numbers(Dataset[Batch]):
    """Seed z and real samples around 3, each a function of its number."""

    def __getitem__(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(number)
        z, real = torch.randn(2, 4, generator=generator)
        return {"z": z, "real": 3 + 0.5 * real}

    def __len__(self) -> int:
        return 10**6


def players() -> tuple[nn.Module, nn.Module]:
    """A generator, and a critic with state of its own beside its weights."""
    torch.manual_seed(0)
    critic = nn.Sequential(spectral_norm(nn.Linear(4, 16)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(16, 1)))
    return nn.Linear(4, 4), critic


def critic_loss(generator: nn.Module, critic: nn.Module, batch: Batch) -> Tensor:
    fake = generator(batch["z"])
    assert not fake.requires_grad
    return (critic(batch["real"]) - 1).square().mean() + critic(fake).square().mean()


def generator_terms(generator: nn.Module, critic: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert not any(weight.requires_grad for weight in critic.parameters())
    fake = generator(batch["z"])
    return {"adversarial": (critic(fake) - 1).square().mean(), "size": 1e-3 * fake.square().mean()}


def scores(generator: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        return {"mean": float(generator(torch.zeros(1, 4)).mean())}


RULES = Rules(critic_loss, generator_terms, scores)


def run(folder: Path, rules: Rules = RULES, **options: object) -> dict[str, Tensor]:
    fit = DuelFit(**({"steps": 6, "batch": 4, "warmup": 1, "gradients_every": 2} | options))  # type: ignore[arg-type]
    fabric = Fabric(accelerator="cpu", devices=1, precision=fit.precision)  # type: ignore[arg-type]
    generator, critic = players()
    found = fit_duel(
        generator, critic, Numbers(), rules, fit, folder, "digest", fabric=fabric, checkpoint_every=2,
        validate_every=fit.steps, workers=0,
    )  # fmt: skip
    assert not found.training
    return found.state_dict() | {f"critic {key}": value for key, value in critic.state_dict().items()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def logged(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows(folder):
        found.setdefault(row["key"], []).append(float(row["value"]))
    return found


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("options", [{}, {"precision": "32-true", "critic_every": 2, "head_start": 2}])
def test_interrupted_duel_ends_with_the_same_weights(
    tmp_path: Path, step: int, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", **options)
    real = training.duel.duel_step

    def stopping(duel, rules, batch):  # type: ignore[no-untyped-def]
        if duel.step == step:
            raise KeyboardInterrupt
        return real(duel, rules, batch)

    monkeypatch.setattr(training.duel, "duel_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", **options)
    monkeypatch.setattr(training.duel, "duel_step", real)
    resumed = run(tmp_path / "broken", **options)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    kept, expected = ([row for row in rows(tmp_path / name) if row["key"] != "seconds"] for name in ("broken", "whole"))
    assert kept == expected


def test_players_learn_and_the_log_tells_every_term(tmp_path: Path) -> None:
    before = scores(players()[0])["mean"]
    run(tmp_path, steps=400, batch=16, learning_rate=3e-2, critic_learning_rate=3e-2, ema=0.9, gradients_every=100)
    found = logged(tmp_path)
    assert abs(found["mean"][-1] - 3) < 0.5 < abs(before - 3)
    assert set(found) == {
        "critic_loss", "generator_loss", "loss_adversarial", "loss_size", "gradient_adversarial", "gradient_size",
        "mean", "seconds",
    }  # fmt: skip
    assert min(found["gradient_adversarial"] + found["gradient_size"]) > 0
    sums = [a + b for a, b in zip(found["loss_adversarial"], found["loss_size"], strict=True)]
    assert found["generator_loss"] == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_critic_that_moves_seldom_is_in_every_report(tmp_path: Path, every: int) -> None:
    run(tmp_path, steps=8, critic_every=every, gradients_every=4)
    found = logged(tmp_path)
    assert len(found["critic_loss"]) == len(found["generator_loss"]) == 2


def test_generator_waits_for_the_head_start(tmp_path: Path) -> None:
    start = players()[0].state_dict()
    found = run(tmp_path, steps=3, head_start=2, learning_rate=1e-2, warmup=0, ema=0.0)
    assert not torch.equal(found["weight"], start["weight"])
    with pytest.raises(FloatingPointError, match="adversarial is nan at step 2"):
        run(tmp_path / "nan", Rules(critic_loss, lost, scores), steps=3, head_start=2)


def lost(generator: nn.Module, critic: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"adversarial": generator(batch["z"]).sum() * float("nan")}


def test_each_player_keeps_its_own_rate() -> None:
    fit = DuelFit(steps=100, warmup=10, head_start=20, learning_rate=1e-3, critic_learning_rate=4e-3)
    assert fit.critic_rate(0) == pytest.approx(4e-4)
    assert fit.generator_rate(0) == pytest.approx(1e-4)  # its first step, after the head start
    assert fit.critic_rate(10) == pytest.approx(4 * fit.generator_rate(10))
    assert fit.generator_rate(79) < 1e-5


@pytest.mark.parametrize(
    "wrong", [{"head_start": 1000}, {"critic_every": 0}, {"learning_rate": 0.0}, {"precision": "16"}, {"ema": 1.0}]
)
def test_contradictions_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DuelFit(**wrong)  # type: ignore[arg-type]
