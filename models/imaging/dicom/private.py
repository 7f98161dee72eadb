"""Private attributes: blocks of elements that a Private Creator reserves in an odd group (PS3.5 7.8.1)."""

from __future__ import annotations

from collections.abc import Collection

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

_FIRST_BLOCK, _LAST_BLOCK = 0x10, 0xFF


def drop_private(level: Dataset, creators: Collection[str]) -> None:
    """Removes the private elements of one level, but the blocks of these creators; items below it are left alone.

    An element whose block nobody reserved goes whoever is allowed.
    """
    for tag in [tag for tag in level.keys() if tag.is_private]:  # noqa: SIM118  (a Dataset iterates over elements)
        if not creators or _creator(level, tag) not in creators:
            del level[tag]


def _creator(level: Dataset, tag: BaseTag) -> str | None:
    """Who reserved the block of a private element, or this block itself; None where nobody did."""
    block = tag.element if tag.element <= _LAST_BLOCK else tag.element >> 8
    reservation = Tag(tag.group, block)
    if not _FIRST_BLOCK <= block <= _LAST_BLOCK or reservation not in level:
        return None
    value = level[reservation].value
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip(" \0")
