"""Which DICOM objects are restored. Each refusal is an UnsupportedImage with a stable reason:

invalid_dicom                no Part 10 header, transfer syntax or identifying UIDs; contradictory header
no_pixel_data                reports, presentation states, waveforms, plans, encapsulated documents
unsupported_pixels           segmentations, dose grids, parametric maps, float or 1/32-bit pixels
palette                      pixel values are indices, not intensities
whole_slide                  tiled microscopy
varying_rescale              frames with different rescale: one sigma cannot mean the same in each
unsupported_transfer_syntax  video, JPIP, or a coding without a free decoder (12-bit JPEG)
"""

from __future__ import annotations

import re
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset

from models.errors import CorruptImage, UnsupportedImage

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_UID = re.compile(r"[0-9.]{1,64}")
NOT_INTENSITIES = {
    uid.SegmentationStorage: "a segmentation",
    uid.RTDoseStorage: "a dose grid",
    uid.ParametricMapStorage: "a parametric map",
    uid.OphthalmicThicknessMapStorage: "a thickness map",
    uid.CornealTopographyMapStorage: "a topography map",
}
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3}


def check_header(dataset: Dataset) -> None:
    """Refuses what is out of scope, judged without pixel data. Raises UnsupportedImage."""
    _check_identity(dataset)
    sop_class = uid.UID(dataset.SOPClassUID)
    if sop_class in NOT_INTENSITIES:
        raise UnsupportedImage("unsupported_pixels", f"{NOT_INTENSITIES[sop_class]} holds no image intensities")
    _check_image(dataset, sop_class)
    image_size(dataset)
    _check_layout(dataset)
    _check_samples(dataset)
    _check_frames(dataset)


def image_size(dataset: Dataset) -> tuple[int, int, int]:
    """(rows, columns, frames) as the header has them, each at least 1."""
    frames = whole(dataset, "NumberOfFrames") if dataset.get("NumberOfFrames") is not None else 1
    size = whole(dataset, "Rows"), whole(dataset, "Columns"), frames
    if min(size) < 1:
        raise UnsupportedImage("invalid_dicom", "Rows, Columns and NumberOfFrames must be at least 1")
    return size


def whole(dataset: Dataset, keyword: str) -> int:
    """An integer attribute that must be there."""
    try:
        return int(dataset[keyword].value)
    except (KeyError, TypeError, ValueError, NotImplementedError):
        raise UnsupportedImage("invalid_dicom", f"{keyword} is missing or not a number") from None


def functional_groups(dataset: Dataset) -> list[Dataset]:
    """Items of an enhanced object: the shared groups, then one per frame; empty for classic objects."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    return [*shared, *(dataset.get("PerFrameFunctionalGroupsSequence") or [])]


def rescales(dataset: Dataset) -> set[tuple[Any, Any, Any]]:
    """Distinct (RescaleSlope, RescaleIntercept, RescaleType), top level or per frame; empty without any."""
    groups = [item for g in functional_groups(dataset) for item in g.get("PixelValueTransformationSequence") or []]
    levels = groups or ([dataset] if dataset.get("RescaleSlope") is not None else [])
    return {(level.get("RescaleSlope"), level.get("RescaleIntercept"), level.get("RescaleType")) for level in levels}


def _check_identity(dataset: Dataset) -> None:
    for keyword in _UIDS:
        value = dataset.get(keyword)
        if not isinstance(value, str) or not _UID.fullmatch(value):
            raise UnsupportedImage("invalid_dicom", f"{keyword} is missing or malformed")


def holds_image(sop_class: uid.UID, unknown: bool) -> bool:
    """Standard classes say by their name whether they are images; of others, `unknown` does."""
    if sop_class.name == str(sop_class):
        return unknown
    return "Image Storage" in sop_class.name or sop_class == uid.EnhancedUSVolumeStorage


def _check_image(dataset: Dataset, sop_class: uid.UID) -> None:
    if not holds_image(sop_class, unknown="Rows" in dataset):
        raise UnsupportedImage("no_pixel_data", "the object holds no image")
    if "Rows" not in dataset:
        raise CorruptImage("truncated: an image object that describes no image", "truncated")


def _check_layout(dataset: Dataset) -> None:
    tiled = str(dataset.get("DimensionOrganizationType", "")).startswith("TILED")
    if tiled or dataset.SOPClassUID == uid.VLWholeSlideMicroscopyImageStorage:
        raise UnsupportedImage("whole_slide", "tiled whole-slide images are not restored")
    photometric = dataset.get("PhotometricInterpretation")
    if photometric == "PALETTE COLOR" or dataset.get("PixelPresentation") in ("COLOR", "MIXED"):
        raise UnsupportedImage("palette", "pixel values are palette indices; expand them to RGB first")
    if photometric not in _SAMPLES:
        raise UnsupportedImage("unsupported_pixels", "PhotometricInterpretation is not one that is read here")
    if whole(dataset, "SamplesPerPixel") != _SAMPLES[photometric]:
        raise UnsupportedImage("invalid_dicom", "SamplesPerPixel contradicts PhotometricInterpretation")


def _check_samples(dataset: Dataset) -> None:
    allocated, stored = whole(dataset, "BitsAllocated"), whole(dataset, "BitsStored")
    if allocated not in (8, 16):
        raise UnsupportedImage("unsupported_pixels", f"{allocated} bits per sample: 8 and 16 are read")
    if not 2 <= stored <= allocated or whole(dataset, "HighBit") != stored - 1:
        raise UnsupportedImage("unsupported_pixels", "BitsStored and HighBit must describe the low bits of a sample")
    signed = whole(dataset, "PixelRepresentation")
    if signed not in (0, 1) or (signed and dataset.SamplesPerPixel == 3):
        raise UnsupportedImage("unsupported_pixels", "PixelRepresentation does not fit the image")
    if str(dataset.PhotometricInterpretation).startswith("YBR") and allocated != 8:
        raise UnsupportedImage("unsupported_pixels", "YBR is read with 8 bits per sample only")


def _check_frames(dataset: Dataset) -> None:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame and len(per_frame) != image_size(dataset)[2]:
        raise UnsupportedImage("invalid_dicom", "NumberOfFrames and the functional groups contradict each other")
    if len(rescales(dataset)) > 1:
        raise UnsupportedImage("varying_rescale", "frames differ in rescale; send them as single-frame objects")
