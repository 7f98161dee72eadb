"""Synthetic DICOM objects and the files inside the pydicom package, for all tests of DICOM."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian

from models.imaging.image import Derivation

Array = np.ndarray[Any, Any]

PACKAGED = Path(pydicom.__file__).parent / "data" / "test_files"

# Every file of the package that is refused, with its reason.
PACKAGED_REFUSED = {
    "ExplVR_BigEndNoMeta.dcm": "invalid_dicom",
    "ExplVR_LitEndNoMeta.dcm": "invalid_dicom",
    "JPEG-lossy.dcm": "unsupported_transfer_syntax",  # 12 bit
    "JPEG2000-embedded-sequence-delimiter.dcm": "corrupt",  # claims 14 million tiles
    "JPEGLSNearLossless_08.dcm": "invalid_dicom",
    "JPEGLSNearLossless_16.dcm": "invalid_dicom",
    "JPGExtended.dcm": "unsupported_transfer_syntax",  # 12 bit
    "MR_truncated.dcm": "truncated",
    "SC_rgb_jls_lossy_line.dcm": "invalid_dicom",
    "SC_rgb_jls_lossy_sample.dcm": "invalid_dicom",
    "SC_rgb_rle_32bit.dcm": "unsupported_pixels",
    "SC_rgb_rle_32bit_2frame.dcm": "unsupported_pixels",
    "UN_sequence.dcm": "invalid_dicom",
    "badVR.dcm": "unsupported_pixels",
    "empty_charset_LEI.dcm": "invalid_dicom",
    "examples_palette.dcm": "palette",
    "liver_1frame.dcm": "unsupported_pixels",
    "liver_expb_1frame.dcm": "unsupported_pixels",
    "meta_missing_tsyntax.dcm": "invalid_dicom",
    "nested_priv_SQ.dcm": "invalid_dicom",
    "no_meta.dcm": "invalid_dicom",
    "no_meta_group_length.dcm": "invalid_dicom",
    "priv_SQ.dcm": "invalid_dicom",
    "reportsi.dcm": "no_pixel_data",
    "reportsi_with_empty_number_tags.dcm": "no_pixel_data",
    "rtdose.dcm": "unsupported_pixels",
    "rtdose_1frame.dcm": "unsupported_pixels",
    "rtdose_expb.dcm": "unsupported_pixels",
    "rtdose_expb_1frame.dcm": "unsupported_pixels",
    "rtdose_rle.dcm": "unsupported_pixels",
    "rtdose_rle_1frame.dcm": "unsupported_pixels",
    "rtplan.dcm": "no_pixel_data",
    "rtplan_truncated.dcm": "truncated",
    "rtstruct.dcm": "invalid_dicom",
    "test-SR.dcm": "no_pixel_data",
    "waveform_ecg.dcm": "no_pixel_data",
}

# The same for the shared data folder; every other file there is in scope.
SHARED_REFUSED = {
    "CT_CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": "palette",  # PixelPresentation COLOR
    "CT_CTImage_JPEGProcess2_4.dcm": "unsupported_transfer_syntax",  # 12 bit
    "CT_gdcm-CT-MONO2-8-abdo.dcm": "invalid_dicom",
    "DX_jpeg-baseline.dcm": "invalid_dicom",
    "OT_SC_rgb_rle_32bit_2frame.dcm": "unsupported_pixels",
    "OT_leadtools-8BitsJpegLossyGrayScale.dcm": "invalid_dicom",
    "OT_parametric_map_float.dcm": "unsupported_pixels",
    "US_GH364.dcm": "invalid_dicom",
    "US_OBXXXX1A_rle_2frame.dcm": "palette",
}

DENOISE = Derivation(
    operation="denoise",
    scale=1,
    model="denoise",
    version="1.0",
    digest="0123456789abcdef" * 4,
    backend="onnx",
    precision="fp32",
    options={"strength": 1.0, "sigma": None},
    evidence={"unit": "HU", "noise_before": 21.5, "noise_after": 4.25, "clipped": 3},
)


def superresolve(scale: int) -> Derivation:
    """The derivation of a super-resolution without options."""
    return Derivation("superresolve", scale, f"superresolve-x{scale}", "1", "fedcba9876543210" * 4, "onnx", "fp32", {})


def packaged(name: str) -> bytes:
    """A file inside the pydicom package."""
    return (PACKAGED / name).read_bytes()


def packaged_in_scope(most_bytes: int = 10**9) -> list[str]:
    """Names of the packaged files that are restored."""
    paths = sorted(PACKAGED.glob("*.dcm"))
    return [p.name for p in paths if p.name not in PACKAGED_REFUSED and p.stat().st_size <= most_bytes]


def grey(rows: int = 6, columns: int = 8, dtype: str = "int16", low: int = -1000, high: int = 3000) -> Array:
    """Random stored values, (rows, columns); equal on every call."""
    return np.random.default_rng(rows * columns).integers(low, high, (rows, columns)).astype(dtype)


def dataset_of(pixels: Array, **attributes: Any) -> Dataset:
    """A CT with these (rows, columns), (frames, rows, columns) or (..., 3) stored values."""
    samples = 3 if pixels.ndim > 2 and pixels.shape[-1] == 3 else 1
    plane = pixels.shape[:-1] if samples == 3 else pixels.shape
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4", "1.2.3", "1.2.3.1"
    dataset.FrameOfReferenceUID = "1.2.3.9"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientID, dataset.StudyDate, dataset.SeriesNumber, dataset.InstanceNumber = "P1", "20200102", 7, 3
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = plane[-2], plane[-1], samples
    dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    if samples == 3:
        dataset.PlanarConfiguration = 0
    if len(plane) == 3:
        dataset.NumberOfFrames = plane[0]
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    if "BitsStored" in attributes and "HighBit" not in attributes:
        dataset.HighBit = dataset.BitsStored - 1
    return dataset


def geometry() -> dict[str, Any]:
    """Attributes of an oblique plane with different spacing between rows and columns."""
    return {
        "PixelSpacing": [0.5, 0.75],
        "ImagePositionPatient": [-100.25, 40.5, 12.125],
        "ImageOrientationPatient": [0.8, 0.6, 0.0, 0.0, 0.0, -1.0],
        "SliceThickness": 2.5,
    }


def file_of(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The dataset as a Part 10 file. Pixel data must already be in the coding of `syntax`."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.file_meta = meta
    stream = BytesIO()
    uid = pydicom.uid.UID(syntax)
    options = {"implicit_vr": uid.is_implicit_VR, "little_endian": uid.is_little_endian}
    dcmwrite(stream, dataset, enforce_file_format=True, **options)
    return stream.getvalue()


def compressed(pixels: Array, encode: Callable[[Array], bytes], syntax: str, **attributes: Any) -> bytes:
    """A file whose frames, (rows, columns) or (frames, rows, columns), went through `encode`."""
    dataset = dataset_of(pixels, **attributes)
    frames = pixels if pixels.ndim == 3 else pixels[np.newaxis]
    dataset.PixelData = encapsulate([encode(frame) for frame in frames])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return file_of(dataset, syntax)


def deflated(head: bytes, dataset_bytes: bytes) -> bytes:
    """A file in the deflated syntax: file meta information, then the raw deflate stream."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return head + packer.compress(dataset_bytes) + packer.flush()


def enhanced(frames: int = 2, slopes: tuple[float, ...] = (2.0, 2.0), **attributes: Any) -> Dataset:
    """An enhanced MR with shared spacing and orientation, and a position per frame."""
    pixels = np.stack([grey(dtype="uint16", low=0, high=4000) + f for f in range(frames)])
    dataset = dataset_of(pixels, SOPClassUID=EnhancedMRImageStorage, Modality="MR", **attributes)
    plane = geometry()
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=plane["PixelSpacing"], SliceThickness=2.5)]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=plane["ImageOrientationPatient"])]
    shared.MRImageFrameTypeSequence = [_item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for frame, slope in zip(range(frames), slopes, strict=True):
        group = Dataset()
        group.PlanePositionSequence = [_item(ImagePositionPatient=[-100.25, 40.5, 12.125 + frame])]
        rescale = _item(RescaleSlope=slope, RescaleIntercept=5.0, RescaleType="US")
        group.PixelValueTransformationSequence = [rescale]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def read(data: bytes) -> Dataset:
    """A file as pydicom reads it, all of it, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(BytesIO(data))
        for _ in dataset.iterall():
            pass
    return dataset


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item
