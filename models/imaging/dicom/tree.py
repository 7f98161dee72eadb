"""Walks a dataset and its nested sequence items."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag


def walk(dataset: Dataset, private: bool = False) -> Iterator[Dataset]:
    """The dataset, then every item below it; private sequences are entered only where asked for.

    Only sequences are converted from their raw bytes: a damaged value elsewhere does no harm.
    """
    yield dataset
    for item in children(dataset, private):
        yield from walk(item, private)


def children(dataset: Dataset, private: bool = False) -> Iterator[Dataset]:
    """Items of the sequences of one level."""
    for tag in list(dataset.keys()):
        if (private or not tag.is_private) and _may_be_sequence(dataset, tag):
            element = dataset[tag]
            if element.VR == "SQ":
                yield from element.value or []


def _may_be_sequence(dataset: Dataset, tag: BaseTag) -> bool:
    vr = dataset.get_item(tag).VR
    if vr not in (None, "UN"):
        return vr == "SQ"
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
