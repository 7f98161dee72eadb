"""Geometry of super-resolved DICOM objects: the image stays where it was in the patient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from models.errors import UnsupportedImage
from models.imaging.dicom import decode_dicom, encode_dicom
from tests.dicom_objects import dataset_of, enhanced, file_of, geometry, grey, packaged, read, superresolve


def magnified(data: bytes, scale: int) -> Dataset:
    """The object of `scale` times as many pixels, each old pixel repeated."""
    image = decode_dicom(data)
    pixels = image.pixels.repeat(scale, 1).repeat(scale, 2)
    padding = None if image.padding is None else image.padding.repeat(scale, 1).repeat(scale, 2)
    return read(encode_dicom(image.with_pixels(pixels, scale, padding), superresolve(scale)))


def corner(plane: Dataset, rows: float, columns: float) -> np.ndarray:
    """Position in the patient, mm, of (row, column) counted from the centre of the first pixel."""
    along_row, along_column = np.reshape([float(v) for v in plane.ImageOrientationPatient], (2, 3))
    between_rows, between_columns = (float(v) for v in plane.PixelSpacing)
    start = np.array([float(v) for v in plane.ImagePositionPatient])
    return start + along_row * between_columns * columns + along_column * between_rows * rows


def assert_same_place(source: Dataset, derived: Dataset, scale: int) -> None:
    """Outer corners and centre of the image are where they were."""
    assert (derived.Rows, derived.Columns) == (source.Rows * scale, source.Columns * scale)
    for top, left in ((0, 0), (0.5, 0.5), (1, 0), (1, 1)):
        old = corner(source, top * source.Rows - 0.5, left * source.Columns - 0.5)
        new = corner(derived, top * derived.Rows - 0.5, left * derived.Columns - 0.5)
        np.testing.assert_allclose(new, old, atol=1e-9)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm", "examples_overlay.dcm"])
def test_real_images_stay_in_place(name: str, scale: int) -> None:
    source, derived = read(packaged(name)), magnified(packaged(name), scale)
    assert_same_place(source, derived, scale)
    for keyword in ("SliceThickness", "ImageOrientationPatient", "FrameOfReferenceUID", "ReconstructionDiameter"):
        assert derived.get(keyword) == source.get(keyword)


millimetres = st.floats(1e-3, 50, allow_subnormal=False)
positions = st.floats(-2000, 2000, allow_subnormal=False)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(millimetres, millimetres),
    st.tuples(positions, positions, positions),
    st.floats(0, 3.1),
    st.sampled_from([2, 4]),
)
def test_any_plane_stays_in_place(
    spacing: tuple[float, float], position: tuple[float, float, float], angle: float, scale: int
) -> None:
    cosine, sine = round(np.cos(angle), 10), round(np.sin(angle), 10)
    dataset = dataset_of(grey(3, 5), PixelSpacing=[f"{v:.8f}" for v in spacing])
    dataset.ImagePositionPatient = [f"{v:.6f}" for v in position]
    dataset.ImageOrientationPatient = [f"{v:.10f}" for v in (cosine, sine, 0, -sine, cosine, 0)]
    data = file_of(dataset)
    source, derived = read(data), magnified(data, scale)
    assert_same_place(source, derived, scale)
    for keyword in ("PixelSpacing", "ImagePositionPatient"):
        assert all(len(str(value)) <= 16 for value in derived[keyword].value)


def test_projection_spacings_are_divided_and_detector_elements_are_not() -> None:
    dataset = dataset_of(grey(), ImagerPixelSpacing=[0.2, 0.3], NominalScannedPixelSpacing=[0.4, 0.4])
    dataset.DetectorElementSpacing = [0.1, 0.1]
    derived = magnified(file_of(dataset), 2)
    assert list(derived.ImagerPixelSpacing) == [0.1, 0.15]
    assert list(derived.NominalScannedPixelSpacing) == [0.2, 0.2]
    assert list(derived.DetectorElementSpacing) == [0.1, 0.1]


def test_each_frame_of_an_enhanced_object_is_moved() -> None:
    data = file_of(enhanced())
    source, derived = read(data), magnified(data, 2)
    for old, new in zip(source.PerFrameFunctionalGroupsSequence, derived.PerFrameFunctionalGroupsSequence, strict=True):
        planes = []
        for dataset, group in ((source, old), (derived, new)):
            shared = dataset.SharedFunctionalGroupsSequence[0]
            plane = Dataset()
            plane.Rows, plane.Columns = dataset.Rows, dataset.Columns
            plane.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
            plane.ImageOrientationPatient = shared.PlaneOrientationSequence[0].ImageOrientationPatient
            plane.ImagePositionPatient = group.PlanePositionSequence[0].ImagePositionPatient
            planes.append(plane)
        assert_same_place(*planes, 2)
    assert derived.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5


PLACES = {  # macro -> what it holds
    "PixelMeasuresSequence": ["PixelSpacing"],
    "PlaneOrientationSequence": ["ImageOrientationPatient"],
    "PlanePositionSequence": ["ImagePositionPatient"],
}


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("shared", [(), ("PixelMeasuresSequence",), ("PlaneOrientationSequence",), tuple(PLACES)])
def test_functional_groups_may_be_shared_or_of_each_frame(shared: tuple[str, ...], scale: int) -> None:
    """Whatever is where, each frame stays in place by its own orientation and spacing, and no macro is added."""
    dataset, plane = enhanced(3, (2.0,) * 3), geometry()
    common, frames = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence
    for macro in PLACES:
        for group in (common, *frames):
            if macro in group:
                del group[macro]
    for number, group in enumerate(frames):
        for macro, keywords in PLACES.items():
            level = common if macro in shared else group
            item = Dataset()
            for keyword in keywords:
                value = [float(v) for v in plane[keyword]]
                if level is group:  # another one for each frame
                    value = [v * (1 + number) for v in value] if keyword != "ImageOrientationPatient" else value
                    value = value[number % 2 * 3 :] + value[: number % 2 * 3] if len(value) == 6 else value
                setattr(item, keyword, value)
            setattr(level, macro, [item])
    data = file_of(dataset)
    source, derived = read(data), magnified(data, scale)
    for number in range(3):
        places = []
        for found in (source, derived):
            levels = [found.PerFrameFunctionalGroupsSequence[number], found.SharedFunctionalGroupsSequence[0]]
            assert [macro in levels[1] for macro in PLACES] == [macro in shared for macro in PLACES]
            assert [macro in levels[0] for macro in PLACES] == [macro not in shared for macro in PLACES]
            whole = Dataset()
            whole.Rows, whole.Columns = found.Rows, found.Columns
            for macro, keywords in PLACES.items():
                (item,) = next(level[macro].value for level in levels if macro in level)
                for keyword in keywords:
                    setattr(whole, keyword, item[keyword].value)
            places.append(whole)
        assert_same_place(*places, scale)


def test_a_position_in_a_nested_item_uses_the_image_spacing() -> None:
    plane = geometry()
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset = dataset_of(grey(), PixelSpacing=plane["PixelSpacing"], DetectorInformationSequence=[detector])
    derived = magnified(file_of(dataset), 2)
    assert list(derived.DetectorInformationSequence[0].ImagePositionPatient) == [-0.1875, -0.125, 0]


@pytest.mark.parametrize("missing", ["PixelSpacing", "ImageOrientationPatient"])
def test_a_position_that_cannot_be_corrected_is_refused(missing: str) -> None:
    plane = geometry()
    del plane[missing]
    data = file_of(dataset_of(grey(), **plane))
    with pytest.raises(UnsupportedImage) as caught:
        magnified(data, 2)
    assert caught.value.reason == "invalid_geometry"


def test_more_rows_than_dicom_can_say_are_refused() -> None:
    with pytest.raises(UnsupportedImage) as caught:
        magnified(file_of(dataset_of(np.zeros((40_000, 1), np.uint8))), 2)
    assert caught.value.reason == "too_large_for_dicom"


@pytest.mark.parametrize("scale", [2, 4])
def test_shutters_cover_the_same_part(scale: int) -> None:
    dataset = dataset_of(grey(20, 30), ShutterShape=["RECTANGULAR", "CIRCULAR"])
    dataset.ShutterLeftVerticalEdge, dataset.ShutterRightVerticalEdge = 3, 28
    dataset.ShutterUpperHorizontalEdge, dataset.ShutterLowerHorizontalEdge = 1, 20
    dataset.CenterOfCircularShutter, dataset.RadiusOfCircularShutter = [10, 15], 6
    dataset.CollimatorLeftVerticalEdge = 2
    derived = magnified(file_of(dataset), scale)
    # the first and last new pixel of the old first and last pixel
    assert (derived.ShutterLeftVerticalEdge, derived.ShutterRightVerticalEdge) == (2 * scale + 1, 28 * scale)
    assert (derived.ShutterUpperHorizontalEdge, derived.ShutterLowerHorizontalEdge) == (1, 20 * scale)
    middles = [9 * scale + (scale + 1) / 2, 14 * scale + (scale + 1) / 2]
    np.testing.assert_allclose(derived.CenterOfCircularShutter, middles, atol=0.5)
    assert derived.RadiusOfCircularShutter == 6 * scale
    assert derived.CollimatorLeftVerticalEdge == scale + 1


@pytest.mark.parametrize("scale", [2, 4])
def test_ultrasound_regions_measure_the_same(scale: int) -> None:
    name = "examples_ybr_color.dcm"
    source, derived = read(packaged(name)), magnified(packaged(name), scale)
    for old, new in zip(source.SequenceOfUltrasoundRegions, derived.SequenceOfUltrasoundRegions, strict=True):
        assert new.RegionLocationMinX0 == old.RegionLocationMinX0 * scale
        assert new.RegionLocationMaxY1 == old.RegionLocationMaxY1 * scale + scale - 1
        np.testing.assert_allclose(new.PhysicalDeltaX * scale, old.PhysicalDeltaX)
    region = Dataset()
    region.PhysicalDeltaX, region.ReferencePixelX0, region.ReferencePixelPhysicalValueX = 0.08, 11, 2.0
    region.PhysicalDeltaY, region.ReferencePixelY0 = 0.04, 5
    derived = magnified(file_of(dataset_of(grey(), SequenceOfUltrasoundRegions=[region])), scale)
    (new,) = derived.SequenceOfUltrasoundRegions
    for axis, reference, value, delta in (("X", 11, 2.0, 0.08), ("Y", 5, 0.0, 0.04)):
        edge = 3.5  # in old pixels: an edge between pixels is the same physical place in both
        old_place = value + (edge - reference) * delta
        new_edge = (edge + 0.5) * scale - 0.5
        shift = new_edge - new[f"ReferencePixel{axis}0"].value
        new_place = new[f"ReferencePixelPhysicalValue{axis}"].value + shift * new[f"PhysicalDelta{axis}"].value
        assert new_place == pytest.approx(old_place)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_overlays_grow_with_the_image(scale: int) -> None:
    data = packaged("examples_overlay.dcm")
    source = read(data)
    if scale == 1:
        image = decode_dicom(data)
        np.testing.assert_array_equal(image.source.overlay_array(0x6000), source.overlay_array(0x6000))
        return
    derived = magnified(data, scale)
    expected = source.overlay_array(0x6000).repeat(scale, 0).repeat(scale, 1)
    np.testing.assert_array_equal(derived.overlay_array(0x6000), expected)


def test_overlay_statistics_of_old_pixels_go_and_its_area_grows() -> None:
    dataset = dataset_of(grey(4, 6))
    for element, vr, value in [
        (0x10, "US", 4),
        (0x11, "US", 6),
        (0x40, "CS", "R"),
        (0x50, "SS", [2, 3]),
        (0x100, "US", 1),
        (0x102, "US", 0),
        (0x1301, "IS", 5),
        (0x1302, "DS", "12.5"),
        (0x3000, "OW", b"\x01\x00\x80\x00"),
    ]:
        dataset.add_new((0x6000, element), vr, value)
    derived = magnified(file_of(dataset), 2)
    assert list(derived[0x6000, 0x50].value) == [3, 5]
    assert derived[0x6000, 0x1301].value == 20
    assert (0x6000, 0x1302) not in derived
    dataset[0x6000, 0x10].value = 60_000
    with pytest.raises(UnsupportedImage):
        magnified(file_of(dataset), 2)
