"""Decodes a DICOM file into an Image (PS3.3 C.7.6.3, PS3.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from models.imaging.dicom.mapping import clear_unused_bits, find_padding, spacing_mm, stored_range, value_map
from models.imaging.dicom.overlay import extract_embedded_overlays
from models.imaging.dicom.parser import parse_dicom
from models.imaging.dicom.pixel import decode_pixels, is_lossy
from models.imaging.dicom.quiet import quiet
from models.imaging.dicom.syntax import SYNTAXES
from models.imaging.dicom.tree import walk
from models.imaging.image import Image, Limits

Array = np.ndarray[Any, Any]


def decode_dicom(data: bytes, limits: Limits = Limits()) -> Image:  # noqa: B008  (frozen)
    """Decodes one Part 10 file of any supported transfer syntax.

    `pixels` keep their stored values, dtype and sense (MONOCHROME1 is turned round by the negative
    `values.scale` alone); colour comes as RGB. `source` is the dataset without its pixel data, for
    `encode_dicom`. Limits are checked before decoding, the deflated syntax included.

    Raises UnsupportedImage (reasons in `scope`), ImageTooLarge, or CorruptImage for damaged and
    truncated files; nothing else.
    """
    with quiet("read"):
        dataset = parse_dicom(data, limits)
        raw = decode_pixels(dataset)
        lossy = is_lossy(dataset)
        _declare(dataset, raw, lossy)
        return image_of(dataset, *separate_padding(dataset, raw), lossy)


def image_of(dataset: Dataset, pixels: Array, padding: Array | None, lossy: bool) -> Image:
    """The image of a dataset without its pixel data."""
    low, high = stored_range(dataset)
    return Image(
        pixels=pixels,
        values=value_map(dataset),
        format="dicom",
        minimum=low,
        maximum=high,
        spacing_mm=spacing_mm(dataset),
        padding=padding,
        lossy=lossy,
        source=dataset,
    )


def separate_padding(dataset: Dataset, raw: Array) -> tuple[Array, Array | None]:
    """Pixels without their unused bits, and where they are padding.

    A padding value may use bits above BitsStored (63536 in 12 stored bits): it is recognised before
    those bits are cleared, and kept as it was.
    """
    pixels = clear_unused_bits(dataset, raw)
    outside = find_padding(dataset, raw) if pixels is not raw else None
    if outside is not None:
        pixels = np.where(outside[..., np.newaxis], raw, pixels)
    return pixels, find_padding(dataset, pixels)


def _declare(dataset: Dataset, raw: Array, lossy: bool) -> None:
    """Makes the header say, independently of how the pixels were coded, what a derived object must keep."""
    if lossy:
        declare_loss(dataset, raw.nbytes / len(dataset.PixelData))
    del dataset.PixelData
    if not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        _swap_words(dataset)
    extract_embedded_overlays(dataset, raw)


def declare_loss(dataset: Dataset, ratio: float) -> None:
    """Flags pixels that were compressed with loss, to one `ratio`-th of their bytes, where the header does not."""
    if dataset.get("LossyImageCompression") != "01":
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = round(ratio, 2)
        dataset.LossyImageCompressionMethod = SYNTAXES[dataset.file_meta.TransferSyntaxUID].method


def _swap_words(dataset: Dataset) -> None:
    """Turns OW values of a big-endian file round; pydicom carries them as bytes (PS3.5 7.3)."""
    for level in walk(dataset):
        for tag in list(level.keys()):
            element = level[tag]
            if element.VR == "OW" and isinstance(element.value, bytes):
                element.value = np.frombuffer(element.value, dtype=">u2").astype("<u2").tobytes()
