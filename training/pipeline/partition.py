"""Which patients are trained on and which are kept for testing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

TRAIN, TEST = "train", "test"


def partition(sets: Sequence[str], groups: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """ "train" or "test" for each image, and warnings; image i is of sets[i] and of the patient groups[i].

    Of every set about `share` of the images go to the test, patients whole, chosen by the seed; one
    patient at least stays to train on. A set of one patient, who shares none with others, is cut: its last images in
    the order of their files are the test. That is the one case where a patient is on both sides.
    """
    if not 0 <= share < 1:
        raise ValueError(f"test share {share} is not within 0 and 1")
    of_set: dict[str, set[str]] = {}
    for name, group in zip(sets, groups, strict=True):
        of_set.setdefault(name, set()).add(group)
    tested = choose(sets, groups, of_set, share, np.random.default_rng(seed))
    sides = [TEST if group in tested else TRAIN for group in groups]
    warnings = []
    for name, people in of_set.items():
        alone = len(people) == 1 and all(people == other for other in of_set.values() if people & other)
        if alone and share:
            members = [i for i, s in enumerate(sets) if s == name]
            last = members[len(members) - test_images(len(members), share) :]
            for i in members:
                sides[i] = TEST if i in last else TRAIN
            if last:
                warnings.append(f"{name}: one patient only, so test images are neighbours of training images")
    return sides, warnings


def choose(
    sets: Sequence[str], groups: Sequence[str], of_set: dict[str, set[str]], share: float, rng: np.random.Generator
) -> set[str]:
    """The patients of the test: set by set, in an order that the seed decides, those that fit into the share."""
    size = Counter(zip(sets, groups, strict=True))
    people = list(dict.fromkeys(groups))
    order = [people[i] for i in rng.permutation(len(people))]
    tested, trained = set[str](), set[str]()
    for name, members in of_set.items():
        wanted = test_images(sum(size[name, g] for g in members), share) - sum(size[name, g] for g in members & tested)
        free = [g for g in order if g in members and g not in tested | trained]
        smallest = min(free, key=lambda g: size[name, g], default="")
        chosen = set[str]()
        for group in free if len(members - tested) > 1 else []:
            left = wanted - sum(size[name, g] for g in chosen)
            if len(members - tested - chosen) > 1 and left > 0 and size[name, group] <= 2 * left:
                chosen.add(group)
        if wanted > 0 and not chosen and not members & tested and len(members) > 1 and free:
            chosen = {smallest}
        tested |= chosen
        trained |= members - tested
    return tested


def test_images(count: int, share: float) -> int:
    """How many of `count` images are tested on: the share, but one at least, and one at least left to train on."""
    return min(max(round(share * count), 1), count - 1) if share else 0
