"""What stored values mean: the fixed value map, unused bits, padding and spacing of a dataset."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from models.errors import UnsupportedImage
from models.imaging.dicom.scope import functional_groups, rescales
from models.imaging.image import ValueMap

Array = np.ndarray[Any, Any]

HU_LOW, HU_HIGH = -1024.0, 3071.0  # mapped onto 0..1 for every CT
_AIR_HU = -1000.0
_UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _/%^.*-]{0,15}")
_UNSPECIFIED = "US"  # RescaleType for "unspecified" (C.11.1.1.2)
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """Smallest and largest value that BitsStored and PixelRepresentation can hold."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)


def value_map(dataset: Dataset) -> ValueMap:
    """The fixed affine maps of an image, made from its header alone.

    CT in HU: -1024..3071 HU onto 0..1. Everything else: 0 onto 0 and the largest storable value onto
    1, so that scanner data, which are intensities even where they are stored signed, keep their zero;
    negative values lie below 0. MONOCHROME1 is turned round, so that bright is always 1.
    """
    slope, intercept, unit = _real_world(dataset)
    largest = stored_range(dataset)[1]
    if unit == "HU":
        scale, offset = slope / (HU_HIGH - HU_LOW), (intercept - HU_LOW) / (HU_HIGH - HU_LOW)
    else:
        scale, offset = 1.0 / largest, 0.0
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        scale, offset = -scale, 1.0 - offset
    return ValueMap(scale, offset, slope, intercept, unit)


def _real_world(dataset: Dataset) -> tuple[float, float, str]:
    """Slope, intercept and unit of the modality transformation (C.11.1).

    A Modality LUT is no affine map: its images are restored before it, in stored values. Rescale
    has no meaning for colour.
    """
    found = rescales(dataset)
    if not found or dataset.SamplesPerPixel != 1 or dataset.get("ModalityLUTSequence"):
        return 1.0, 0.0, "stored value"
    slope, intercept, kind = found.pop()
    try:
        slope, intercept = float(slope), float(intercept)
    except (TypeError, ValueError):
        raise UnsupportedImage("invalid_dicom", "RescaleSlope and RescaleIntercept must be numbers") from None
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise UnsupportedImage("invalid_dicom", "RescaleSlope must be finite and not 0")
    if _is_hounsfield(dataset, slope, intercept, kind):
        return slope, intercept, "HU"
    name = dataset.get("Units") or kind
    named = isinstance(name, str) and name not in (_UNSPECIFIED, "HU") and _UNIT_NAME.fullmatch(name)
    return slope, intercept, str(name) if named else "rescaled value"


def _is_hounsfield(dataset: Dataset, slope: float, intercept: float, kind: str | None) -> bool:
    """CT rescaled to HU: RescaleType may be absent for CT (C.8.2.1), but the range must hold air.

    An 8-bit screen capture of a CT, with slope 1 and intercept 0, is not in HU whatever its Modality.
    """
    lowest = min(slope * value + intercept for value in stored_range(dataset))
    return dataset.get("Modality") == "CT" and kind in (None, "", "HU") and lowest <= _AIR_HU


def clear_unused_bits(dataset: Dataset, raw: Array) -> Array:
    """Values of the low BitsStored bits alone, sign extended (PS3.5 8.1.1). Same shape and dtype."""
    unused = int(dataset.BitsAllocated) - int(dataset.BitsStored)
    return (raw << unused) >> unused if unused else raw


def padding_range(dataset: Dataset) -> tuple[int, int] | None:
    """Stored values, lowest and highest inclusive, that mark padding (C.7.5.1.1.2); None without any."""
    value = dataset.get("PixelPaddingValue")
    if value is None or dataset.SamplesPerPixel != 1:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    first, last = (_as_sample(dataset, v) for v in (value, value if limit is None else limit))
    return min(first, last), max(first, last)


def _as_sample(dataset: Dataset, value: Any) -> int:
    """A padding value as pixels hold it: some writers give 63536 where the pixels say -2000."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise UnsupportedImage("invalid_dicom", "PixelPaddingValue is not a number") from None
    number &= (1 << int(dataset.BitsAllocated)) - 1
    sign = 1 << (int(dataset.BitsAllocated) - 1)
    return number - 2 * sign if dataset.PixelRepresentation and number >= sign else number


def find_padding(dataset: Dataset, values: Array) -> Array | None:
    """(frames, rows, columns) bool for (frames, rows, columns, 1) values; None where nothing is padding."""
    bounds = padding_range(dataset)
    if bounds is None:
        return None
    found: Array = ((values >= bounds[0]) & (values <= bounds[1]))[..., 0]
    return found if found.any() else None


def keep_out_of_padding(dataset: Dataset, pixels: Array, padding: Array | None) -> Array:
    """Moves restored pixels that landed inside the padding range to the nearest value beside it.

    Upwards where there is room: padding lies below the measured values nearly always. Padding
    pixels themselves, where `padding` (frames, rows, columns) is true, are left alone.
    """
    bounds = padding_range(dataset)
    if bounds is None:
        return pixels
    low, high = bounds
    smallest, largest = stored_range(dataset)
    beside = high + 1 if high < largest else low - 1
    if not smallest <= beside <= largest:
        return pixels
    intruding = (pixels >= low) & (pixels <= high)
    if padding is not None:
        intruding &= ~padding[..., np.newaxis]
    return np.where(intruding, np.array(beside, pixels.dtype), pixels) if intruding.any() else pixels


def spacing_mm(dataset: Dataset) -> tuple[float, float] | None:
    """Millimetres between rows and between columns, in the patient or at the detector; None if unknown."""
    levels = [item for group in functional_groups(dataset) for item in group.get("PixelMeasuresSequence") or []]
    for level in [dataset, *levels]:
        for keyword in _SPACINGS:
            value = level.get(keyword)
            if value and len(value) == 2:
                between_rows, between_columns = float(value[0]), float(value[1])
                if 0 < between_rows < math.inf and 0 < between_columns < math.inf:
                    return between_rows, between_columns
    return None
