"""Images that are nearly the same, so that none is trained on while its twin is tested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from training.pipeline.intake import Frame

EVERY = 8  # of the 257 quantiles of an image, one in so many is compared
TOLERANCE = 0.004  # of an image's range: less than one grey level in 256 at every quantile


def join_twins(frames: Sequence[Frame], groups: Sequence[str]) -> list[str]:
    """The groups of the frames, those that share a twin joined under the name of the one that comes first.

    Twins have the same size, turned or not, and about the same grey values: the same picture stored in another
    format, compressed, turned or mirrored. Two pictures that only chance to agree lose nothing by being kept together.
    """
    parents = {group: group for group in groups}

    def root(group: str) -> str:
        while parents[group] != group:
            group = parents[group]
        return group

    for first, second in twins(frames):
        low, high = sorted((root(groups[first]), root(groups[second])))
        parents[high] = low
    return [root(group) for group in groups]


def twins(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    """Pairs of frames, by number, that are nearly the same."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number, frame in enumerate(frames):
        sizes.setdefault(tuple(sorted((frame.rows, frame.columns))), []).append(number)
    found = []
    for members in sizes.values():
        quantiles = np.array([frames[number].quantiles[::EVERY] for number in members], dtype=np.float64)
        reach = np.ptp(quantiles, axis=1)[:, None]
        places = np.hstack([(quantiles - quantiles[:, :1]) / reach, np.log(reach), quantiles[:, :1] / reach])
        pairs = cKDTree(places).query_pairs(TOLERANCE, p=np.inf)
        found += [(members[a], members[b]) for a, b in sorted(pairs)]
    return found
