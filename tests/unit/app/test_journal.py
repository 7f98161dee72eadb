"""The journal of finished frames: exact, and honest about what a crash left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.jobs.journal import Journal
from app.pipeline import Record
from models.imaging.correlation import NoiseCorrelation
from models.imaging.reduction import Agreement

MAKING = {"digest": "ab", "precision": "fp32"}


def record(seed: int) -> Record:
    numbers = np.random.default_rng(seed).normal(size=10)
    colour = NoiseCorrelation(*numbers[:4].tolist(), patches=seed) if seed % 2 else None
    agreement = Agreement(40, abs(float(numbers[4])), 0.1, 1.0, 1 / 3) if seed % 2 else None
    return Record(seed, float(numbers[4]), float(numbers[5]), colour, numbers[6:9], float(numbers[9]), agreement)


def equal(a: Record, b: Record) -> bool:
    return str(vars(a)) == str(vars(b)) and a.removed.tobytes() == b.removed.tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal", MAKING)
    for seed in range(3):
        journal.add(record(seed))
    return tmp_path / "journal"


def test_records_come_back_to_the_last_bit(path: Path) -> None:
    found = Journal(path, MAKING).records
    assert len(found) == 3
    assert all(equal(a, record(seed)) for seed, a in enumerate(found))


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_was_cut_off_does_not_count(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, MAKING)
    assert len(journal.records) == 2
    journal.add(record(2))
    assert all(equal(a, record(seed)) for seed, a in enumerate(Journal(path, MAKING).records))


def test_a_line_of_before_there_was_a_guard_is_read(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines[1:]:
        del line["agreement"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [found.agreement for found in Journal(path, MAKING).records] == [None] * 3


def test_frames_made_otherwise_do_not_count(path: Path) -> None:
    assert Journal(path, {**MAKING, "precision": "bf16"}).records == []
    assert Journal(path, MAKING).records == []
