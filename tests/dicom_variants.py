"""Any DICOM object in other transfer syntaxes, by encoders that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image as Picture
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from models.errors import CorruptImage
from models.imaging.dicom.quiet import quiet
from models.imaging.dicom.tree import walk
from tests.dicom_objects import read
from tests.reference_images import saved

Array = np.ndarray[Any, Any]

NATIVE = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_OPTIONS: dict[str, dict[str, Any]] = {  # of pydicom's own encoders
    uid.RLELossless: {"encoding_plugin": "pydicom"},
    uid.JPEGLSLossless: {},
    uid.JPEGLSNearLossless: {"jls_error": 2},
    uid.JPEG2000Lossless: {},
    uid.JPEG2000: {"j2k_cr": [8]},
}
_FRAMES: dict[str, Callable[[Array, int], bytes]] = {  # of one frame and its BitsStored
    uid.JPEGLosslessSV1: lambda frame, bits: imagecodecs.ljpeg_encode(frame, bitspersample=bits),
    uid.HTJ2KLossless: lambda frame, bits: imagecodecs.htj2k_encode(frame, reversible=True),
    uid.JPEGBaseline8Bit: lambda frame, bits: saved(Picture.fromarray(frame), "JPEG", quality=90),
}
LOSSLESS = (
    *NATIVE,
    *(uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.HTJ2KLossless),
)
SYNTAXES = (*NATIVE, *_OPTIONS, *_FRAMES)


def recodings(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(transfer syntax, file) of everything that can hold the object; its UIDs stay."""
    for syntax in SYNTAXES:
        made = recoded(data, syntax)
        if made is not None:
            yield syntax, made


def recoded(data: bytes, syntax: str) -> bytes | None:
    """The same object in another transfer syntax; None where an encoder does not take such pixels."""
    try:
        with quiet("written"):
            dataset = _plain(data)
            if syntax in _OPTIONS:
                dataset.compress(syntax, generate_instance_uid=False, **_OPTIONS[syntax])
            elif syntax in _FRAMES:
                _compress_frames(dataset, syntax)
            elif syntax == uid.ExplicitVRBigEndian:
                _swap_words(dataset)
            return _file(dataset, uid.UID(syntax))
    except CorruptImage:  # encoders say in many ways that they do not take such pixels
        return None


def _plain(data: bytes) -> Dataset:
    """The object with native little-endian pixels."""
    dataset = read(data)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.decompress(generate_instance_uid=False)
    elif not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        _swap_words(dataset)
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if dataset.BitsAllocated == 8:
        dataset["PixelData"].VR = "OB"
    if dataset.get("PlanarConfiguration") == 1:  # pydicom encodes the planes as if they were pixels
        dataset.PixelData, dataset.PlanarConfiguration = dataset.pixel_array.tobytes(), 0
    return dataset


def _compress_frames(dataset: Dataset, syntax: str) -> None:
    """Grey frames alone. Raises ValueError for pixels that the syntax does not take."""
    eight = dataset.BitsAllocated == dataset.BitsStored == 8
    signed = bool(dataset.PixelRepresentation) and syntax != uid.JPEGLosslessSV1  # which takes bits as they are
    if dataset.SamplesPerPixel != 1 or signed or (syntax == uid.JPEGBaseline8Bit and not eight):
        raise ValueError("not for such pixels")
    pixels = dataset.pixel_array.view(f"u{dataset.BitsAllocated // 8}") & (2**dataset.BitsStored - 1)
    frames = pixels if pixels.ndim == 3 else pixels[np.newaxis]
    packed = [_FRAMES[syntax](np.ascontiguousarray(frame), dataset.BitsStored) for frame in frames]
    dataset.PixelData = encapsulate(packed)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True


def _file(dataset: Dataset, syntax: uid.UID) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    stream = BytesIO()
    options = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    dcmwrite(stream, dataset, enforce_file_format=True, **options)
    return stream.getvalue()


def _swap_words(dataset: Dataset) -> None:
    """Turns OW values round, which pydicom carries as bytes."""
    for level in walk(dataset):
        for tag in list(level.keys()):
            element = level[tag]
            if element.VR == "OW" and isinstance(element.value, bytes):
                element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()
