"""Encodes a restored Image as a derived DICOM object of the source's SOP class (PS3.3 A, PS3.10)."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from datetime import datetime
from io import BufferedIOBase, BytesIO
from typing import BinaryIO

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
from models.imaging.dicom.pixel import native_bytes, put_pixels
from models.imaging.dicom.private import drop_private
from models.imaging.dicom.provenance import record_derivation
from models.imaging.dicom.quiet import quiet
from models.imaging.dicom.tree import walk
from models.imaging.image import Derivation, Image
from models.imaging.policy import DEFAULT, Policy

_FIRST_GROUP = 0x0008  # below it: commands, file meta information, directory records
STALE = (
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
    "SOPInstanceStatus",
    "SOPAuthorizationDateTime",
    "SOPAuthorizationComment",
    "AuthorizationEquipmentCertificationNumber",
    "PixelDataProviderURL",
    "LengthToEnd",
    "DataSetTrailingPadding",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "EncapsulatedPixelDataValueTotalLength",
)


def encode_dicom(image: Image, derivation: Derivation, now: datetime | None = None, policy: Policy = DEFAULT) -> bytes:
    """A derived object: `image`, which came from `decode_dicom`, as Explicit VR Little Endian.

    `image.pixels` are the restored (frames, `scale` * rows, `scale` * columns, samples) in the stored
    type. What becomes of each attribute is told by `treatment`, which prints docs/derived-objects.md.

    Equal arguments give equal bytes. `now` is the time of processing, for InstanceCreationDate,
    SeriesDate and ContributionDateTime; without it those are left as in the source or out. A caller
    that stores objects passes the time of its job, so that a retry writes the same bytes. `policy` is
    what the site decides: labels, and private attributes that stay.

    A pixel that restoration moved into the padding range is moved out of it.

    Raises OptionError for an image that did not come from DICOM, UnsupportedImage where geometry
    cannot be scaled, CorruptImage where an attribute of the source cannot be written.
    """
    if not isinstance(image.source, Dataset):
        raise OptionError("only an image that was sent as DICOM can be answered as DICOM")
    stream = BytesIO()
    with quiet("written"):
        _magnification(image, derivation)
        data = native_pixels(image)
        write_dicom(stream, image, derivation, data + b"\0" * (len(data) % 2), now, policy)
    return stream.getvalue()


def write_dicom(
    stream: BinaryIO,
    image: Image,
    derivation: Derivation,
    data: bytes | BufferedIOBase,
    now: datetime | None = None,
    policy: Policy = DEFAULT,
) -> None:
    """The same into a file, with pixel data of the image's shape and type (`native_pixels`) that may be a file too.

    `data` has an even number of bytes. Raises what `encode_dicom` does.
    """
    with quiet("written"):
        source: Dataset = image.source
        scale = _magnification(image, derivation)
        dataset = _copy(source)
        _strip(dataset, policy.private_creators)
        if scale > 1:
            magnify_geometry(dataset, scale)
        record_derivation(dataset, source, derivation, policy, now)
        put_pixels(dataset, image.pixels.shape, data)
        _write(stream, dataset)


def native_pixels(image: Image) -> bytes:
    """The pixel data of a derived object, of all its frames or of some."""
    return native_bytes(keep_out_of_padding(image.source, image.pixels, image.padding))


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


def _strip(dataset: Dataset, creators: Collection[str]) -> None:
    """Removes what describes the old pixels, cannot be vouched for, or is no part of a dataset."""
    for level in walk(dataset, private=True):  # those that stay: the others are gone when it comes to them
        drop_private(level, creators)
        for tag in list(level.keys()):
            if tag.element == 0 or tag.group < _FIRST_GROUP:
                del level[tag]
        for keyword in STALE:
            if keyword in level:
                del level[keyword]
        drop_statistics(level)


def _write(stream: BinaryIO, dataset: Dataset) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.ImplementationClassUID = implementation_uid()
    meta.ImplementationVersionName = "MEDRESTORE"
    dataset.file_meta = meta
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
