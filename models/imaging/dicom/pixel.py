"""Pixel data elements to arrays, and arrays to pixel data elements (PS3.5 section 8, annex A)."""

from __future__ import annotations

from collections.abc import Iterable
from io import BufferedIOBase
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag

from models.errors import CorruptImage, UnsupportedImage
from models.imaging.dicom.codestream import Codestream, check_run_lengths, read_codestream
from models.imaging.dicom.scope import image_size
from models.imaging.dicom.syntax import SYNTAXES, Syntax

Array = np.ndarray[Any, Any]

_PIXEL_DATA = Tag("PixelData")


def decode_pixels(dataset: Dataset) -> Array:
    """(frames, rows, columns, samples) in the allocated dtype, native byte order, colour as RGB.

    Bits above BitsStored are still as in the file: they may be overlays, or a padding value.
    Raises CorruptImage or UnsupportedImage.
    """
    syntax = SYNTAXES[dataset.file_meta.TransferSyntaxUID]
    if syntax.coding == "native":
        check_native_length(dataset, len(dataset.PixelData))
    else:
        check_frames(dataset, generate_frames(dataset.PixelData, number_of_frames=image_size(dataset)[2]))
    rows, columns, frames = image_size(dataset)
    array, photometric = _decode(dataset, syntax)
    array = array.reshape(frames, rows, columns, dataset.SamplesPerPixel)
    if dataset.SamplesPerPixel == 3 and photometric != "RGB":
        raise UnsupportedImage("unsupported_pixels", f"{dataset.PhotometricInterpretation} cannot be turned into RGB")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def native_bytes(pixels: Array) -> bytes:
    """Native little-endian pixel data of (frames, rows, columns, samples), without the padding byte."""
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


def put_pixels(dataset: Dataset, shape: tuple[int, ...], data: bytes | BufferedIOBase) -> None:
    """Makes `native_bytes` of an array of this shape, or a file of them, the pixel data of `dataset`."""
    _, rows, columns, samples = shape
    dataset.Rows, dataset.Columns = rows, columns
    if samples == 3:
        dataset.PhotometricInterpretation = "RGB"
        dataset.PlanarConfiguration = 0
    vr = "OW" if dataset.BitsAllocated > 8 else "OB"
    dataset[_PIXEL_DATA] = DataElement(_PIXEL_DATA, vr, data)


def is_lossy(dataset: Dataset) -> bool:
    """Whether the pixels were ever compressed with loss (PS3.3 C.7.6.1.1.5), flagged or not."""
    syntax = SYNTAXES[dataset.file_meta.TransferSyntaxUID]
    if dataset.get("LossyImageCompression") == "01" or syntax.lossy:
        return True
    if not syntax.method:
        return False
    frame = next(generate_frames(dataset.PixelData, number_of_frames=image_size(dataset)[2]))
    return not read_codestream(frame, syntax.coding).reversible


def frame_bytes(dataset: Dataset) -> int:
    """Bytes of one native frame; YBR_FULL_422 shares its colour between two pixels (C.7.6.3.1.2)."""
    rows, columns, _ = image_size(dataset)
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else dataset.SamplesPerPixel
    return int(rows * columns * samples * dataset.BitsAllocated // 8)


def check_native_length(dataset: Dataset, length: int) -> None:
    """Whether so many bytes hold every native frame. Raises CorruptImage."""
    expected = frame_bytes(dataset) * image_size(dataset)[2]
    if length < expected:
        raise CorruptImage(f"truncated: {length} bytes of pixel data where {expected} are needed", "truncated")


def check_frames(dataset: Dataset, packed: Iterable[bytes]) -> None:
    """Every compressed frame there, whole, and of the size and depth that the dataset promises."""
    syntax, frames, found = SYNTAXES[dataset.file_meta.TransferSyntaxUID], image_size(dataset)[2], 0
    for frame in packed:
        found += 1
        if syntax.coding == "rle":
            check_run_lengths(frame, dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * 2)
        else:
            _check_codestream(dataset, read_codestream(frame, syntax.coding))
    if found < frames:
        raise CorruptImage(f"truncated: {found} compressed frames where {frames} are promised", "truncated")


def _check_codestream(dataset: Dataset, stream: Codestream) -> None:
    if (stream.rows, stream.columns) != (dataset.Rows, dataset.Columns):
        raise CorruptImage("a compressed frame differs in size from Rows and Columns")
    if stream.samples != dataset.SamplesPerPixel or stream.precision > dataset.BitsAllocated:
        raise CorruptImage("a compressed frame differs in samples or depth from the header")
    if SYNTAXES[dataset.file_meta.TransferSyntaxUID].method == "ISO_10918_1" and stream.precision != 8:
        raise UnsupportedImage(
            "unsupported_transfer_syntax", "12-bit JPEG has no free decoder; ask the archive for Explicit VR"
        )


def _decode(dataset: Dataset, syntax: Syntax) -> tuple[Array, str]:
    """The array and its photometric interpretation."""
    options: dict[str, Any] = {"allow_excess_frames": False}
    if syntax.coding in ("native", "rle", "jpeg"):
        options["correct_unused_bits"] = False
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    array, properties = decoder.as_array(dataset, decoding_plugin=syntax.plugin, **options)
    return array, str(properties["photometric_interpretation"])
