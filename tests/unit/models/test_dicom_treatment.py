"""The table of treatments tells what the writer does, and the page in docs is that table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from app.settings import Settings
from models.imaging.dicom import decode_dicom, encode_dicom
from models.imaging.dicom.treatment import TREATMENTS, page
from models.imaging.image import Derivation
from tests.dicom_objects import DENOISE, dataset_of, file_of, geometry, grey, read, superresolve

PAGE = Path(__file__).parents[3] / "docs" / "derived-objects.md"
ROWS = [(attribute, row) for row in TREATMENTS for attribute in row.attributes]

BY_VR: dict[str, Any] = {
    "AT": 0x00100010,
    "CS": "YES",
    "DA": "20200203",
    "DS": "2.5",
    "DT": "20200203101112",
    "FL": 2.5,
    "IS": 40,
    "LO": "text",
    "LT": "text",
    "OB": b"\1\2",
    "OV": b"\1" * 8,
    "PN": "Name",
    "SH": "text",
    "SL": 5,
    "ST": "text",
    "TM": "101112",
    "UI": "1.2.3.77",
    "UL": 4,
    "UR": "http://localhost/",
    "US": 4,
    "UV": 8,
}
VALUES: dict[str, Any] = {  # where the VR does not say what a fitting value is
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "ImagePositionVolume": [1.0, 2.0, 3.0],
    "LossyImageCompression": "01",
    "LossyImageCompressionRatio": [10.5],
    "PixelAspectRatio": [1, 1],
    "PixelPaddingValue": -2000,
    "PixelPaddingRangeLimit": -1990,
    "SmallestImagePixelValue": -5,
    "LargestImagePixelValue": 5,
    "RescaleType": "US",
    "MaskSubPixelShift": [0.5, -1.5],
    "AcquisitionMatrix": [4, 0, 0, 4],
    "FieldOfViewOrigin": [3, 4],
    "DetectorElementSpacing": [0.1, 0.2],
    **{name: [0.5, 0.75] for name in ("ImagerPixelSpacing", "NominalScannedPixelSpacing")},
    "ObjectPixelSpacingInCenterOfBeam": [0.5, 0.75],
}
NEEDED: dict[str, dict[str, Any]] = {  # attribute -> others that it is not understood without
    "PixelPaddingRangeLimit": {"PixelPaddingValue": -2000},
    "RescaleSlope": {"RescaleIntercept": 0},
    "ExtendedOffsetTable": {"ExtendedOffsetTableLengths": b"\1" * 8},
    "ExtendedOffsetTableLengths": {"ExtendedOffsetTable": b"\1" * 8},
}


def source_with(attribute: str) -> bytes:
    """A CT that has the attribute."""
    dataset = dataset_of(grey(low=-900), **geometry(), WindowCenter=40, WindowWidth=400, PositionReferenceIndicator="")
    for needed, value in NEEDED.get(attribute, {}).items():
        setattr(dataset, needed, value)
    if attribute not in dataset:
        vr = dictionary_VR(attribute)
        item = Dataset()
        item.CodeMeaning = "before"
        if attribute == "SequenceOfUltrasoundRegions":
            item.RegionLocationMinX0, item.PhysicalDeltaX = 3, 0.5
        value = [item] if vr == "SQ" else VALUES.get(attribute, BY_VR.get(vr, 4))
        setattr(dataset, attribute, value)
    return file_of(dataset)


def derived_of(data: bytes, derivation: Derivation) -> Dataset:
    image, scale = decode_dicom(data), derivation.scale
    return read(encode_dicom(image.with_pixels(image.pixels.repeat(scale, 1).repeat(scale, 2), scale), derivation))


def effect_of(attribute: str, source: Dataset, derived: Dataset, scale: int) -> set[str]:
    """The effects that may be told of what became of an attribute."""
    if attribute not in derived:
        return {"removed"}
    before, after = source[attribute].value, derived[attribute].value
    if before == after:
        return {"kept"} if attribute != "PixelData" else {"rewritten", "kept"}
    if source[attribute].VR == "SQ" and list(after)[: len(before)] == list(before):
        return {"appended"}
    found = {"set", "new", "moved", "rewritten"}
    try:
        ratios = {round(a / b, 6) for a, b in zip(_numbers(after), _numbers(before), strict=True) if b}
    except (TypeError, ValueError):
        return found
    return found | {"multiplied" if ratios == {scale} else "divided" if ratios == {1 / scale} else ""}


def _numbers(value: Any) -> list[float]:
    return [float(v) for v in value] if not isinstance(value, int | float | str) else [float(value)]


@pytest.mark.parametrize(("attribute", "row"), ROWS, ids=[attribute for attribute, _ in ROWS])
def test_each_attribute_is_treated_as_the_table_says(attribute: str, row: Any) -> None:
    data = source_with(attribute)
    source = read(data)
    assert attribute in source
    assert row.denoise in effect_of(attribute, source, derived_of(data, DENOISE), 1)
    assert row.superresolve in effect_of(attribute, source, derived_of(data, superresolve(2)), 2)


def test_no_attribute_is_treated_twice() -> None:
    names = [attribute for attribute, _ in ROWS]
    assert len(names) == len(set(names))


def test_the_page_is_the_table() -> None:
    """`python -m models.imaging.dicom.treatment > docs/derived-objects.md` writes it anew."""
    assert PAGE.read_text() == page()
    for name in Settings.model_fields:
        assert not name.startswith("dicom_") or f"`{name}`" in page()
