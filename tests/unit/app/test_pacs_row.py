"""Answers of a PACS in JSON: whatever they say, they are rows or they are malformed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pacs.dicomweb import stored_of
from app.pacs.errors import PacsMalformed
from app.pacs.orthanc import SeriesTags, changes_of, tags_of
from app.pacs.row import UID, instance_row, series_row

TAGS = ["0020000D", "0020000E", "00080018", "00080016", "00080008", "00081198", "00081199", "00081155", "00081197"]
NAMES = ["Changes", "Seq", "ID", "ChangeType", "Last", "Done", "Instances", "IsStable", "ImageType", "SeriesNumber"]
MORE = ["StudyInstanceUID", "SeriesInstanceUID", "ContributingEquipmentSequence", "DeviceUID", "Value", "vr"]
KEYS = TAGS + NAMES + MORE
SCALARS = st.sampled_from([None, True, 0, -1, 2.5, float("inf"), float("nan"), "", "x", "1.2", "1.3"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=8,
)


def read_tags(answer: Any) -> SeriesTags:
    uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}
    return tags_of("id", answer, answer | uids if isinstance(answer, dict) else answer)


@pytest.mark.parametrize("read", [series_row, instance_row, stored_of, changes_of, read_tags])
@given(answer=JSON)
def test_any_json_is_read_or_malformed(read: Callable[[Any], Any], answer: Any) -> None:
    with suppress(PacsMalformed):
        read(answer)


ELEMENT = st.fixed_dictionaries({"Value": st.lists(SCALARS, max_size=2)})


@given(rows=st.dictionaries(st.sampled_from(TAGS), ELEMENT, max_size=9))
def test_what_is_read_has_uids(rows: dict[str, Any]) -> None:
    rows |= {"0020000D": {"Value": ["1.2 "]}, "0020000E": {"Value": ["1.3\0"]}}
    row = series_row(rows)
    assert row is not None
    assert (row.study, row.series) == ("1.2", "1.3")
    assert all(isinstance(text, str) for text in row.image_type)
    try:
        assert UID.fullmatch(instance_row(rows).sop_instance)
    except PacsMalformed:
        assert not any(value in ("1.2", "1.3") for value in rows.get("00080018", {"Value": []})["Value"][:1])


@given(answer=JSON)
def test_nothing_is_both_stored_and_failed(answer: Any) -> None:
    try:
        told = stored_of(answer)
    except PacsMalformed:
        return
    assert not told.stored & set(told.failed)
    assert "" not in told.stored | set(told.failed)


@pytest.mark.parametrize("size", [-1, 0, 2**16, 10**30])
def test_sizes_that_no_image_has_are_not_known(size: int) -> None:
    row = instance_row({tag: {"Value": [value]} for tag, value in (("00080018", "1.2"), ("00280010", size))})
    assert row.rows is None
    assert series_row({"0020000D": {"Value": ["1.2"]}, "0020000E": {"Value": ["a name"]}}) is None
