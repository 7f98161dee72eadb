"""Encodes a restored Image as a derived DICOM object of the source's SOP class (PS3.3 A, PS3.10)."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from io import BytesIO

from pydicom import dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian

from models.errors import OptionError
from models.imaging.dicom.geometry import magnify_geometry
from models.imaging.dicom.identity import implementation_uid
from models.imaging.dicom.mapping import keep_out_of_padding
from models.imaging.dicom.overlay import drop_statistics
from models.imaging.dicom.pixel import write_pixels
from models.imaging.dicom.provenance import record_derivation
from models.imaging.dicom.quiet import quiet
from models.imaging.dicom.tree import walk
from models.imaging.image import Derivation, Image

_FIRST_GROUP = 0x0008  # below it: commands, file meta information, directory records
_STALE = (
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane",
    "LargestImagePixelValueInPlane",
    "HistogramSequence",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "PixelDataProviderURL",
    "LengthToEnd",
    "DataSetTrailingPadding",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "EncapsulatedPixelDataValueTotalLength",
)


def encode_dicom(image: Image, derivation: Derivation, now: datetime | None = None) -> bytes:
    """A derived object: `image`, which came from `decode_dicom`, as Explicit VR Little Endian.

    Equal arguments give equal bytes. `now` is the time of processing, for InstanceCreationDate,
    SeriesDate and ContributionDateTime; without it those are left as in the source or out. A caller
    that stores objects passes the time of its job, so that a retry writes the same bytes.

    Removed: private attributes, icons, signatures, and statistics of the old pixels. A pixel that
    restoration moved into the padding range is moved out of it.

    Raises OptionError for an image that did not come from DICOM, UnsupportedImage where geometry
    cannot be scaled, CorruptImage where an attribute of the source cannot be written.
    """
    if not isinstance(image.source, Dataset):
        raise OptionError("only an image that was sent as DICOM can be answered as DICOM")
    with quiet("written"):
        source: Dataset = image.source
        scale = _magnification(image, derivation)
        dataset = _copy(source)
        _strip(dataset)
        if scale > 1:
            magnify_geometry(dataset, scale)
        record_derivation(dataset, source, derivation, now)
        write_pixels(dataset, keep_out_of_padding(dataset, image.pixels, image.padding))
        return _write(dataset)


def _magnification(image: Image, derivation: Derivation) -> int:
    """The derivation's scale, which the pixels must agree with."""
    _, rows, columns, samples = image.pixels.shape
    source = image.source
    expected = (source.Rows * derivation.scale, source.Columns * derivation.scale, source.SamplesPerPixel)
    if (rows, columns, samples) != expected or image.bits != source.BitsAllocated:
        raise OptionError(f"{rows} x {columns} pixels of {image.bits} bits are not x{derivation.scale} of the source")
    return derivation.scale


def _copy(source: Dataset) -> Dataset:
    """A deep copy that shares what cannot change: tags, and the elements that nobody read, which are most of them."""
    parts = [part for level in walk(source) for part in (*level.keys(), *level.elements())]
    return deepcopy(source, {id(part): part for part in parts if isinstance(part, BaseTag | RawDataElement)})


def _strip(dataset: Dataset) -> None:
    """Removes what describes the old pixels, cannot be vouched for, or is no part of a dataset."""
    for level in walk(dataset):
        for element in list(level.elements()):
            tag = element.tag
            if tag.is_private or tag.element == 0 or tag.group < _FIRST_GROUP:
                del level[tag]
        for keyword in _STALE:
            if keyword in level:
                del level[keyword]
        drop_statistics(level)


def _write(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.ImplementationClassUID = implementation_uid()
    meta.ImplementationVersionName = "MEDRESTORE"
    dataset.file_meta = meta
    stream = BytesIO()
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return stream.getvalue()
