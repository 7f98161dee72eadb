"""The split: patients are never on both sides."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.pipeline.partition import TEST, TRAIN, partition

MEMBERS = st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 8)), min_size=3, max_size=80)


@given(MEMBERS, st.floats(0, 0.5), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_no_patient_is_on_both_sides(members: list[tuple[str, int]], share: float, seed: int) -> None:
    sets, groups = [name for name, _ in members], [f"g{number}" for _, number in members]
    sides, warnings = partition(sets, groups, share, seed)
    cut = {warning.split(":")[0] for warning in warnings}
    for group in set(groups):
        where = {side for side, g in zip(sides, groups, strict=True) if g == group}
        mine = {s for s, g in zip(sets, groups, strict=True) if g == group}
        assert len(where) == 1 or mine & cut


@given(MEMBERS, st.floats(0.05, 0.5), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_something_is_left_to_train_on(members: list[tuple[str, int]], share: float, seed: int) -> None:
    sides, _ = partition([name for name, _ in members], [f"g{number}" for _, number in members], share, seed)
    assert len(sides) == len(members)
    assert TRAIN in sides


@pytest.mark.parametrize("seed", range(5))
def test_test_share_is_about_what_was_asked_for(seed: int) -> None:
    groups = [f"g{i // 4}" for i in range(400)]
    sides, warnings = partition(["ct"] * 400, groups, 0.15, seed)
    assert 0.12 <= Counter(sides)[TEST] / 400 <= 0.18
    assert not warnings


def test_every_set_has_its_share() -> None:
    sets = ["ct"] * 40 + ["mr"] * 40 + ["us"] * 8
    sides, _ = partition(sets, [f"g{i // 2}" for i in range(88)], 0.15, 0)
    tested = Counter(name for name, side in zip(sets, sides, strict=True) if side == TEST)
    assert set(tested) == {"ct", "mr", "us"}
    assert tested["us"] <= 2


def test_a_large_patient_does_not_swallow_the_test() -> None:
    groups = ["big"] * 60 + [f"g{i}" for i in range(40)]
    sides, _ = partition(["ct"] * 100, groups, 0.15, 3)
    assert sides[0] == TRAIN
    assert Counter(sides)[TEST] >= 10


def test_single_patient_is_cut_at_the_end_with_a_warning() -> None:
    sides, warnings = partition(["ct"] * 20 + ["mr"] * 20, ["p"] * 20 + [f"q{i}" for i in range(20)], 0.15, 0)
    assert sides[:20] == [TRAIN] * 17 + [TEST] * 3
    assert len(warnings) == 1
    assert warnings[0].startswith("ct: one patient only")


def test_one_patient_in_two_sets_is_cut_in_both() -> None:
    sides, warnings = partition(["sharp"] * 10 + ["soft"] * 10, ["p"] * 20, 0.2, 0)
    assert sides == ([TRAIN] * 8 + [TEST] * 2) * 2
    assert len(warnings) == 2


def test_seed_decides() -> None:
    groups = [f"g{i}" for i in range(50)]
    first, again, other = (partition(["ct"] * 50, groups, 0.2, seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_share_of_nothing_tests_nothing() -> None:
    assert set(partition(["ct"] * 5, ["p"] * 5, 0.0, 0)[0]) == {TRAIN}
    with pytest.raises(ValueError, match="share"):
        partition(["ct"], ["p"], 1.0, 0)
