"""A CT series, enhanced multi-frame MRs, radiographs and colour stay where they were, through a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from tests.benchmarks.geometry import judge, planes, prove, shift_of, sources
from tests.dicom_objects import enhanced, file_of, read, superresolve
from tests.dicom_validator import needs
from tests.e2e.server import Server
from tests.unit.models.test_dicom_geometry import magnified

pytestmark = [pytest.mark.shared, needs("dciodvfy")]

SIDE = 72  # of what is sent, where it can be cut: enough to see a shift of a twentieth of a pixel


@pytest.fixture(scope="module")
def objects(shared: Path) -> dict[str, list[bytes]]:
    return sources(shared, SIDE, slices=2)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(
    "name", ["CT series", "enhanced MR", "MR of 10 frames", "radiograph CR", "radiograph DX", "ultrasound RGB"]
)
def test_nothing_moves_and_nothing_is_wrong(
    shipped: Server, objects: dict[str, list[bytes]], name: str, scale: int, tmp_path: Path
) -> None:
    row, wrong = prove(shipped.url, name, objects[name], scale, tmp_path)
    assert not wrong
    assert row["objects"] == len(objects[name])
    (picture,) = tmp_path.glob("*.png")
    assert np.ptp(np.asarray(Picture.open(picture))) > 100


def test_the_objects_are_what_they_are_said_to_be(objects: dict[str, list[bytes]]) -> None:
    found = {name: read(files[0]) for name, files in objects.items()}
    assert len(list(planes(found["CT series"]))) == 1
    assert len(list(planes(found["enhanced MR"]))) == 2
    assert found["MR of 10 frames"].NumberOfFrames == 10
    assert found["radiograph DX"].ImagerPixelSpacing == [0.15, 0.15]
    assert found["ultrasound RGB"].SamplesPerPixel == 3
    assert [found["ultrasound RGB"].Rows % 2, found["radiograph CR"].Columns % 2] == [1, 1]
    assert (0x6000, 0x3000) in found["MR with overlay"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ImagePositionPatient": [-100.25, 40.5, 12.125]}, "a point moved by 0.15"),
        ({"PixelSpacing": [0.5, 0.75]}, "PixelSpacing times the scale"),
        ({"WindowCenter": 3}, "WindowCenter has changed"),
    ],
)
def test_the_judge_is_listening(change: dict[str, Any], complaint: str) -> None:
    data = file_of(enhanced())
    source, derived = read(data), magnified(data, 2)
    source.WindowCenter = derived.WindowCenter = 40
    assert not list(judge(source, derived, 2))
    groups = [derived.PerFrameFunctionalGroupsSequence[0], derived.SharedFunctionalGroupsSequence[0]]
    items = [element.value[0] for group in groups for element in group if element.VR == "SQ"]
    for keyword, value in change.items():
        setattr(next(level for level in [*items, derived] if keyword in level), keyword, value)
    assert any(complaint in found for found in judge(source, derived, 2))


def test_a_macro_that_changes_places_is_noticed() -> None:
    data = file_of(enhanced())
    source, derived = read(data), magnified(data, 2)
    shared = derived.SharedFunctionalGroupsSequence[0]
    for group in derived.PerFrameFunctionalGroupsSequence:
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PixelMeasuresSequence
    assert [found for found in judge(source, derived, 2) if "changed places" in found]


def test_half_a_pixel_is_noticed(objects: dict[str, list[bytes]]) -> None:
    from models.imaging.dicom import decode_dicom, encode_dicom

    image = decode_dicom(objects["CT series"][0])
    high = image.pixels.repeat(2, 1).repeat(2, 2)
    for pixels, moved in ((high, 0.0), (np.roll(high, 1, axis=1), 1.0)):
        derived = encode_dicom(image.with_pixels(pixels, 2), superresolve(2))
        assert shift_of(objects["CT series"][0], derived, 2) == pytest.approx(moved, abs=0.04)
