"""Every DICOM file at hand becomes a derived object that other software agrees with, or is refused for its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from models.errors import ImageError
from models.imaging.dicom import decode_dicom, encode_dicom, kind_of
from tests.benchmarks.derived import DERIVATIONS, Row, cases, filtered, judge, run, table
from tests.dicom_objects import DENOISE, PACKAGED_REFUSED, SHARED_REFUSED, file_of, packaged, read, superresolve
from tests.dicom_validator import complaints_about, needs

pytestmark = [pytest.mark.shared, needs("dciodvfy", "dcmdump")]

SMALL = 300_000  # bytes of a file that is recoded here; the command takes larger ones too


@pytest.fixture(scope="module")
def rows(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    found = list(run(cases(shared, SMALL), tmp_path_factory.mktemp("matrix")))
    print(table(found))
    return found


def test_nothing_is_wrong_with_any_derived_object(rows: list[Row]) -> None:
    assert not {(row.case.name, row.operation): row.complaints for row in rows if row.complaints}


def test_what_is_not_derived_is_refused_for_its_reason(rows: list[Row]) -> None:
    told = {row.case.name: row.reason for row in rows if row.outcome != "derived"}
    assert told == PACKAGED_REFUSED | SHARED_REFUSED


def test_every_class_and_every_transfer_syntax_is_there(rows: list[Row]) -> None:
    derived = [row for row in rows if row.outcome == "derived"]
    assert len({row.sop_class for row in derived}) >= 15
    for modality in ("CT", "MR", "Computed Rad", "Digital X-Ray", "Mammography", "Ultrasound", "Positron", "Nuclear"):
        assert any(modality in row.sop_class for row in derived)
    for kind in ("Angiographic", "Secondary Capture", "Enhanced CT", "Enhanced MR"):
        assert any(kind in row.sop_class for row in derived)
    syntaxes = Counter(row.case.name.rpartition(" as ")[2] for row in derived if row.case.origin == "recoded")
    assert len(syntaxes) == 12
    assert min(syntaxes.values()) >= 4


@pytest.mark.parametrize(
    "attributes",
    [
        {"PixelSpacing": [0.661468, 0.661468]},
        {"ImagePositionPatient": [-158.135803, -179.035797, -75.699997]},
        {"SeriesInstanceUID": "1.2.3"},
        {"ImageType": ["ORIGINAL", "PRIMARY"]},
        {"RescaleIntercept": 0},
        {"PatientID": "another"},
        {"ContributingEquipmentSequence": None},
        {"PixelData": b"\0" * 2 * 256 * 256},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
def test_the_judge_is_listening(attributes: dict[str, Any]) -> None:
    """Each of these is an object that must not be stored."""
    image, derivation = decode_dicom(packaged("CT_small.dcm")), superresolve(2)
    restored = filtered(image, 2)
    whole = encode_dicom(restored, derivation)
    assert not list(judge(image, restored, derivation, whole))
    dataset = read(whole)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    assert list(judge(image, restored, derivation, file_of(dataset)))


@needs("dcentvfy")
def test_a_series_and_what_is_derived_of_it_are_consistent(shared: Path, tmp_path: Path) -> None:
    """dcentvfy finds nothing in source and derived series together that it does not find in the source alone."""
    sources = []
    for path in sorted((shared / "data" / "dicom_series" / "ct_lidc0314").glob("*.dcm")):
        try:
            decode_dicom(path.read_bytes())
        except ImageError:
            continue
        sources.append(path)
    assert len(sources) > 10
    made = []
    for derivation in DERIVATIONS:
        for path in sources:
            image = decode_dicom(path.read_bytes())
            made.append(tmp_path / f"{derivation.operation}-{path.name}")
            made[-1].write_bytes(encode_dicom(filtered(image, derivation.scale), derivation))
    before = complaints_about(sources)
    assert not {line for line in complaints_about([*sources, *made]) if line.startswith("Error")} - before
    assert not {line for line in complaints_about(made) if line.startswith("Error")} - before
    # it is listening: the same objects with another patient's birth date are not consistent
    strange = decode_dicom(sources[0].read_bytes())
    strange.source.PatientSex = "O" if strange.source.get("PatientSex") != "O" else "M"
    made[0].write_bytes(encode_dicom(filtered(strange, 1), DENOISE))
    assert complaints_about([*sources, *made]) - complaints_about([*sources, *made[1:]])


def test_a_direct_call_derives_what_a_route_skips(rows: list[Row]) -> None:
    skipped = {row.kind for row in rows if row.outcome == "derived"} - {"image"}
    assert {"screen", "derived"} <= skipped
    assert kind_of(decode_dicom(packaged("CT_small.dcm")).source).routed
