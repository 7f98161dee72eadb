"""Heads of DICOM files: what is read without pixels, and that nothing but a refusal comes of damage."""

from __future__ import annotations

import tracemalloc
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import CorruptImage, ImageError, ImageTooLarge
from models.imaging.dicom import kind_of, read_head
from tests.dicom_objects import PACKAGED, dataset_of, deflated, file_of, grey, packaged

LIMIT = 2**20


def head(tmp_path: Path, data: bytes, limit: int = LIMIT):
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    return read_head(path, limit)


def test_tells_where_an_object_belongs_and_what_rules_ask_for(tmp_path: Path) -> None:
    found = head(tmp_path, file_of(dataset_of(grey(), SeriesDescription="Lung", StationName="CT2")))
    assert (found.study, found.series, found.sop_instance) == ("1.2.3", "1.2.3.1", "1.2.3.4")
    assert found.sop_class == "1.2.840.10008.5.1.4.1.1.2"
    assert found.syntax == "1.2.840.10008.1.2.1"
    wanted = {"SeriesDescription": "Lung", "StationName": "CT2", "Modality": "CT"}
    assert {keyword: found.attributes[keyword] for keyword in wanted} == wanted
    assert kind_of(found.attributes).name == "image"
    assert "PatientID" not in found.attributes
    assert found.patient[0] == str(dataset_of(grey()).get("PatientID") or "")


@pytest.mark.parametrize(
    ("keyword", "refused"), [("SeriesDescription", True), ("RedPaletteColorLookupTableData", False)]
)
def test_large_values_stay_on_the_disk(tmp_path: Path, keyword: str, refused: bool) -> None:
    """A value may be as long as its file: 4 GiB through a door that lets that much in."""
    dataset = dataset_of(grey())
    dataset.add_new(keyword, "UT" if refused else "OW", "x" * 2**23 if refused else b"x" * 2**23)
    path = tmp_path / "a.dcm"
    path.write_bytes(file_of(dataset))
    tracemalloc.start()
    with pytest.raises(ImageTooLarge) if refused else nullcontext():
        read_head(path, LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_objects_without_pixels_have_heads_too(tmp_path: Path) -> None:
    assert kind_of(head(tmp_path, packaged("reportsi.dcm")).attributes).name == "report"


@pytest.mark.parametrize("name", sorted(p.name for p in PACKAGED.glob("*.dcm")))
def test_every_packaged_file_is_read_or_refused(tmp_path: Path, name: str) -> None:
    with suppress(CorruptImage):
        assert head(tmp_path, packaged(name)).study


@pytest.mark.parametrize(
    "change",
    [{"SOPInstanceUID": ""}, {"StudyInstanceUID": "1..2"}, {"SeriesInstanceUID": "." * 5}, {"SOPInstanceUID": "1.x"}],
)
def test_identifiers_must_be_what_the_standard_says(tmp_path: Path, change: dict[str, str]) -> None:
    data = file_of(dataset_of(grey()))
    dataset = dataset_of(grey())
    for keyword, value in change.items():
        before = str(dataset[keyword].value).encode()
        after = value.encode().ljust(len(before), b"\0")[: len(before)]
        at = data.index(before, data.index(b"DICM") + 200)
        data = data[:at] + after + data[at + len(before) :]
    with pytest.raises(CorruptImage):
        head(tmp_path, data)


def test_a_deflated_file_may_not_grow_without_end(tmp_path: Path) -> None:
    data = packaged("image_dfl.dcm")
    assert head(tmp_path, data).study
    with pytest.raises(ImageTooLarge):
        head(tmp_path, data, limit=1000)
    start = data.index(b"1.2.840.10008.1.2.1.99") + 22
    with pytest.raises(ImageError):
        head(tmp_path, deflated(data[:start], b"\0" * 2**22))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    body = bytearray(file_of(dataset_of(grey(), SeriesDescription="Lung")))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ImageError):
        kind_of(head(tmp_path, bytes(body[: data.draw(st.integers(0, len(body)))])).attributes)
