"""What must change in a dataset when every pixel becomes `scale` x `scale` pixels (PS3.3 C.7.6.2).

The networks are aligned by pixel area: the image keeps its extent, so the outer edges stay where
they were and the centre of the first pixel moves by half the difference of the pixel sizes.
Attributes in millimetres (SliceThickness, ReconstructionDiameter), in detector elements
(FieldOfViewOrigin, DetectorElementSpacing) or of the acquisition (AcquisitionMatrix) stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from models.errors import UnsupportedImage
from models.imaging.dicom.overlay import magnify_overlays
from models.imaging.dicom.tree import children, walk

_MOST = 65_535  # Rows and Columns are US
SPACINGS = (
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "ObjectPixelSpacingInCenterOfBeam",
)
SHAPES = ("Shutter", "Collimator", "ExposureControlSensingRegion")  # C.7.6.11, C.8.7.3, C.8.19.6
_REGION_POINTS = (  # zero-based pixels of an ultrasound region (C.8.5.5)
    "DopplerSampleVolumeXPosition",
    "DopplerSampleVolumeYPosition",
    "TMLinePositionX0",
    "TMLinePositionY0",
    "TMLinePositionX1",
    "TMLinePositionY1",
)


def magnify_geometry(dataset: Dataset, scale: int) -> None:
    """Rewrites spacing, position and everything in pixel units, at every level of `dataset`.

    Raises UnsupportedImage where a position cannot be corrected or the result would be too large.
    """
    if max(dataset.Rows, dataset.Columns) * scale > _MOST:
        raise UnsupportedImage("too_large_for_dicom", f"more than {_MOST} rows or columns after x{scale}")
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    _move_positions(dataset, _Frame().refined(shared[0]), scale)
    for level in walk(dataset):
        _divide_spacings(level, scale)
        _magnify_shapes(level, scale)
        if "SequenceOfUltrasoundRegions" in level:
            for region in level.SequenceOfUltrasoundRegions or []:
                _magnify_region(region, scale)
        if level.get("MaskSubPixelShift"):
            level.MaskSubPixelShift = [float(v) * scale for v in level.MaskSubPixelShift]
        magnify_overlays(level, scale)


@dataclass(frozen=True)
class _Frame:
    """Orientation and spacing that hold at one level: its own, or inherited from the level above."""

    orientation: tuple[float, ...] | None = None  # direction cosines of a row, then of a column
    spacing: tuple[float, ...] | None = None  # mm between rows, between columns

    def refined(self, level: Dataset) -> _Frame:
        found = self
        macros = ("PlaneOrientationSequence", "PlaneOrientationVolumeSequence", "PixelMeasuresSequence")
        for source in [level, *(item for name in macros for item in level.get(name) or [])]:
            orientation = source.get("ImageOrientationPatient") or source.get("ImageOrientationVolume")
            if orientation and len(orientation) == 6:
                found = replace(found, orientation=tuple(map(float, orientation)))
            spacing = source.get("PixelSpacing")
            if spacing and len(spacing) == 2:
                found = replace(found, spacing=tuple(map(float, spacing)))
        return found


def _move_positions(level: Dataset, inherited: _Frame, scale: int) -> None:
    frame = inherited.refined(level)
    for keyword in ("ImagePositionPatient", "ImagePositionVolume"):
        if level.get(keyword):
            level[keyword].value = _decimals(_shifted(level[keyword].value, frame, scale))
    for item in children(level):
        _move_positions(item, frame, scale)


def _shifted(position: Any, frame: _Frame, scale: int) -> list[float]:
    """Centre of the first pixel, moved along rows and columns by (1/scale - 1)/2 old pixels."""
    if frame.orientation is None or frame.spacing is None or len(position) != 3:
        raise UnsupportedImage("invalid_geometry", "an image position without orientation or spacing cannot be scaled")
    step = (1 / scale - 1) / 2
    along_row, along_column = frame.orientation[:3], frame.orientation[3:]
    between_rows, between_columns = frame.spacing
    return [
        float(p) + step * (r * between_columns + c * between_rows)
        for p, r, c in zip(position, along_row, along_column, strict=True)
    ]


def _decimals(values: list[float]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters (PS3.5 6.2)."""
    return [DSfloat(value, auto_format=True) for value in values]


def _divide_spacings(level: Dataset, scale: int) -> None:
    for keyword in SPACINGS:
        if level.get(keyword):
            level[keyword].value = _decimals([float(v) / scale for v in level[keyword].value])


def _magnify_shapes(level: Dataset, scale: int) -> None:
    """Shutters, collimators and sensing regions: pixel numbers that start at 1, row before column."""
    for shape in SHAPES:
        edges = {
            f"{shape}LeftVerticalEdge": _first,
            f"{shape}UpperHorizontalEdge": _first,
            f"{shape}RightVerticalEdge": _last,
            f"{shape}LowerHorizontalEdge": _last,
            f"CenterOfCircular{shape}": _middle,
            f"VerticesOfThePolygonal{shape}": _middle,
            f"RadiusOfCircular{shape}": _length,
        }
        for keyword, rule in edges.items():
            if level.get(keyword) is not None:
                value = level[keyword].value
                many = not isinstance(value, int)
                level[keyword].value = [rule(int(v), scale) for v in value] if many else rule(int(value), scale)


def _first(pixel: int, scale: int) -> int:
    return (pixel - 1) * scale + 1


def _last(pixel: int, scale: int) -> int:
    return pixel * scale


def _middle(pixel: int, scale: int) -> int:
    return _first(pixel, scale) + (scale - 1) // 2


def _length(pixels: int, scale: int) -> int:
    return pixels * scale


def _magnify_region(region: Dataset, scale: int) -> None:
    """An ultrasound region (C.8.5.5): bounds are inclusive, zero-based pixel numbers.

    The reference pixel is an integer, but its centre falls between the new pixels; what it moves by
    rounding is added to its physical value, so that every pixel keeps its physical coordinate.
    """
    for axis in "XY":
        for keyword, extra in ((f"RegionLocationMin{axis}0", 0), (f"RegionLocationMax{axis}1", scale - 1)):
            if region.get(keyword) is not None:
                region[keyword].value = int(region[keyword].value) * scale + extra
        delta = f"PhysicalDelta{axis}"
        if region.get(delta) is not None:
            region[delta].value = float(region[delta].value) / scale
        pixel, value = f"ReferencePixel{axis}0", f"ReferencePixelPhysicalValue{axis}"
        if region.get(pixel) is not None:
            region[pixel].value = int(region[pixel].value) * scale + (scale - 1) // 2
            if region.get(delta) is not None:
                moved = (scale - 1) // 2 - (scale - 1) / 2
                setattr(region, value, float(region.get(value) or 0.0) + moved * region[delta].value)
    for keyword in _REGION_POINTS:
        if region.get(keyword) is not None:
            region[keyword].value = int(region[keyword].value) * scale + (scale - 1) // 2
