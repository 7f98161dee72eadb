"""What a stage is made from: equal fingerprints are done, others are refused, and the refusal says why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from training.pipeline.stage import (
    Fingerprint,
    begin,
    check,
    discard,
    done,
    fingerprint,
    finish,
    folder_digest,
    public_config,
    recorded,
    require,
)


@dataclass(frozen=True)
class Config:
    steps: int = 100
    sides: tuple[int, ...] = (8, 16)
    inner: dict[str, Any] = field(default_factory=lambda: {"rate": 0.5})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run whose audit has left its files."""
    (tmp_path / "audit" / "noisy").mkdir(parents=True)
    (tmp_path / "audit" / "audit.json").write_text("{}")
    (tmp_path / "audit" / "noisy" / "n000001.npy").write_bytes(b"one")
    return tmp_path


def learn(out: Path) -> None:
    """A checkpoint, as hours of training leave it."""
    (out / "preliminary" / "mean").mkdir(parents=True)
    (out / "preliminary" / "mean" / "checkpoint.pt").write_bytes(b"hours")


def test_finished_stage_is_done_for_its_own_digest_alone(out: Path) -> None:
    wanted = fingerprint(out, "preliminary", Config(), 0)
    assert not done(out, "preliminary", wanted.digest)
    begin(out, "preliminary", wanted)
    assert not done(out, "preliminary", wanted.digest)
    finish(out, "preliminary", wanted, {"seconds": 1.0})
    assert done(out, "preliminary", wanted.digest)
    assert recorded(out, "preliminary") == wanted
    assert not done(out, "preliminary", fingerprint(out, "preliminary", Config(steps=101), 0).digest)


@pytest.mark.parametrize(
    ("config", "seed", "message"),
    [
        (Config(steps=200), 0, "steps: 200, not 100"),
        (Config(sides=(8, 32)), 0, r"sides\[1\]: 32, not 16"),
        (Config(inner={"rate": 0.1}), 0, r"inner.rate: 0.1, not 0.5"),
        (Config(), 7, "seed: 7, not 0"),
    ],
)
def test_another_configuration_is_refused_by_name(out: Path, config: Config, seed: int, message: str) -> None:
    begin(out, "preliminary", fingerprint(out, "preliminary", Config(), 0))
    learn(out)
    with pytest.raises(ValueError, match=message) as refusal:
        begin(out, "preliminary", fingerprint(out, "preliminary", config, seed))
    assert "--redo" in str(refusal.value)
    begin(out, "preliminary", fingerprint(out, "preliminary", Config(), 0))


def test_a_stage_that_learned_nothing_makes_room(out: Path) -> None:
    """A call that failed at once, for a wrong setting, must not stand in the way of the right one."""
    begin(out, "preliminary", fingerprint(out, "preliminary", Config(steps=-1), 0))
    (out / "preliminary" / "debris").write_text("x")
    wanted = fingerprint(out, "preliminary", Config(), 0)
    begin(out, "preliminary", wanted)
    assert recorded(out, "preliminary") == wanted
    assert [path.name for path in (out / "preliminary").iterdir()] == ["started.json"]


def test_changed_input_is_refused_by_name(out: Path) -> None:
    begin(out, "preliminary", fingerprint(out, "preliminary", Config(), 0))
    learn(out)
    (out / "audit" / "noisy" / "n000001.npy").write_bytes(b"two")
    with pytest.raises(ValueError, match="audit/noisy has changed"):
        check(out, "preliminary", fingerprint(out, "preliminary", Config(), 0))


def test_a_long_list_of_differences_is_cut() -> None:
    many = Fingerprint({f"k{i:02}": i for i in range(30)}, 0, {})
    assert len(many.differences(Fingerprint({}, 0, {}))) == 30


def test_discarded_stage_leaves_nothing(out: Path) -> None:
    wanted = fingerprint(out, "preliminary", Config(), 0)
    begin(out, "preliminary", wanted)
    finish(out, "preliminary", wanted, {})
    discard(out, "preliminary")
    discard(out, "preliminary")
    assert recorded(out, "preliminary") is None
    assert sorted(path.name for path in out.iterdir()) == ["audit"]


def test_stage_needs_those_before_it(out: Path) -> None:
    with pytest.raises(ValueError, match="stage audit is not done"):
        require(out, ("audit",))
    finish(out, "audit", fingerprint(out, "audit", Config(), 0, {"noisy": "x"}), {})
    require(out, ("audit",))


def test_folder_digest_follows_names_and_contents_but_no_hidden_file(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x").write_bytes(b"1")
    (tmp_path / "b" / "deep" / "x").write_bytes(b"1")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "c" / "deep" / "y").write_bytes(b"1")
    (tmp_path / "d" / "deep" / "x").write_bytes(b"2")
    digests = [folder_digest(tmp_path / name) for name in ("a", "b", "c", "d")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_settings_that_may_name_a_folder_are_hashed_in_public() -> None:
    config = {"seed": 3, "audit": {"include": ["MUELLER/*"], "exclude": [], "smallest": 64}}
    shown = public_config(config)
    assert shown["seed"] == 3
    assert shown["audit"]["smallest"] == 64
    assert shown["audit"]["exclude"] == []
    assert shown["audit"]["include"].startswith("sha256:")
    assert "MUELLER" not in str(shown)
