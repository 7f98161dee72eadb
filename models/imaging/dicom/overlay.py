"""Overlay planes, groups 60xx (PS3.3 C.9.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from models.errors import UnsupportedImage

Array = np.ndarray[Any, Any]

_ROWS, _COLUMNS, _FRAMES, _ORIGIN = 0x0010, 0x0011, 0x0015, 0x0050
_BITS_ALLOCATED, _BIT_POSITION = 0x0100, 0x0102
_AREA, _MEAN, _DEVIATION, _DATA = 0x1301, 0x1302, 0x1303, 0x3000


def overlay_groups(dataset: Dataset) -> Iterator[int]:
    """Groups 6000, 6002, ... 601E that describe an overlay."""
    return (group for group in range(0x6000, 0x6020, 2) if Tag(group, _ROWS) in dataset)


def extract_embedded_overlays(dataset: Dataset, raw: Array) -> None:
    """Moves overlays out of unused pixel bits (retired) into OverlayData, for those bits get lost.

    `raw` is (frames, rows, columns, 1) with all its bits. A plane whose position is in use by the
    pixels, or that has OverlayData already, is left alone.
    """
    for group in overlay_groups(dataset):
        position = dataset.get(Tag(group, _BIT_POSITION))
        if Tag(group, _DATA) in dataset or position is None:
            continue
        bit = int(position.value)
        if dataset.BitsStored <= bit < dataset.BitsAllocated and raw.shape[3] == 1:
            _store_plane(dataset, group, (raw >> bit) & 1)
            dataset[Tag(group, _ROWS)].value, dataset[Tag(group, _COLUMNS)].value = raw.shape[1:3]
            dataset[Tag(group, _BIT_POSITION)].value = 0
            dataset[Tag(group, _BITS_ALLOCATED)] = DataElement(Tag(group, _BITS_ALLOCATED), "US", 1)


def has_embedded_overlays(dataset: Dataset) -> bool:
    """Whether some plane lies in the pixels' unused bits."""
    return any(
        Tag(group, _DATA) not in dataset and int(dataset[group, _BIT_POSITION].value or 0) >= dataset.BitsStored
        for group in overlay_groups(dataset)
        if Tag(group, _BIT_POSITION) in dataset
    )


def drop_statistics(dataset: Dataset) -> None:
    """Removes ROIMean and ROIStandardDeviation: they describe the pixels before restoration."""
    for group in overlay_groups(dataset):
        for element in (_MEAN, _DEVIATION):
            dataset.pop(Tag(group, element), None)


def magnify_overlays(dataset: Dataset, scale: int) -> None:
    """Repeats every overlay bit `scale` times each way and moves its origin (first pixel is 1\\1).

    Raises UnsupportedImage where a plane is cut short.
    """
    for group in overlay_groups(dataset):
        rows, columns = int(dataset[group, _ROWS].value), int(dataset[group, _COLUMNS].value)
        frames = int(dataset[group, _FRAMES].value) if Tag(group, _FRAMES) in dataset else 1
        if Tag(group, _DATA) in dataset:
            packed = np.frombuffer(dataset[group, _DATA].value, np.uint8)
            if 8 * len(packed) < frames * rows * columns:
                raise UnsupportedImage("invalid_dicom", "OverlayData are shorter than the overlay's own size")
            bits = np.unpackbits(packed, bitorder="little", count=frames * rows * columns)
            plane = bits.reshape(frames, rows, columns)
            _store_plane(dataset, group, plane.repeat(scale, axis=1).repeat(scale, axis=2))
        dataset[group, _ROWS].value, dataset[group, _COLUMNS].value = rows * scale, columns * scale
        if Tag(group, _ORIGIN) in dataset:
            origin = dataset[group, _ORIGIN]
            origin.value = [(int(v) - 1) * scale + 1 for v in origin.value]
        if Tag(group, _AREA) in dataset:
            dataset[group, _AREA].value = int(dataset[group, _AREA].value) * scale**2


def _store_plane(dataset: Dataset, group: int, bits: Array) -> None:
    """Packs 0/1 values, eight to a byte, first pixel in the lowest bit (PS3.5 8.1.2)."""
    data = np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()
    tag = Tag(group, _DATA)
    dataset[tag] = DataElement(tag, "OW", data + b"\0" * (len(data) % 2))
