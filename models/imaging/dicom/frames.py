"""Frames of a DICOM file one by one, so that memory holds one of them whatever their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from models.errors import CorruptImage
from models.imaging.dicom.measured import Measured
from models.imaging.dicom.overlay import has_embedded_overlays
from models.imaging.dicom.parser import Span, locate_pixels, read_header, read_meta
from models.imaging.dicom.pixel import (
    check_frames,
    check_native_length,
    decode_pixels,
    frame_bytes,
    is_lossy,
)
from models.imaging.dicom.quiet import quiet
from models.imaging.dicom.reader import declare_loss, image_of, separate_padding
from models.imaging.dicom.scope import image_size
from models.imaging.dicom.syntax import SYNTAXES
from models.imaging.image import Image, Limits

Array = np.ndarray[Any, Any]

_NUMBER, _PIXEL_DATA = Tag("NumberOfFrames"), Tag("PixelData")
_IMAGE_GROUP = 0x0028


def open_dicom_frames(file: BinaryIO, limits: Limits, whole: Limits) -> DicomFrames | None:
    """The frames of a Part 10 file, judged by its header and its length; `whole` limits what is in memory at once.

    None where they can only be decoded together: deflated and big-endian files (retired or rare, and
    never large), and overlays in unused bits of the pixels. Raises what `decode_dicom` does.
    """
    measured = Measured(file, whole.bytes)
    file = cast(BinaryIO, measured)
    with quiet("read"):
        meta = read_meta(file)
        syntax = meta.TransferSyntaxUID
        if syntax == DeflatedExplicitVRLittleEndian or not syntax.is_little_endian:
            return None
        dataset = read_header(file, meta, limits)
        span = locate_pixels(file, dataset)
        measured.counting = False
        return None if has_embedded_overlays(dataset) else DicomFrames(file, dataset, span)


class DicomFrames:
    """Each frame is decoded as an object of its own, by the code that decodes whole objects.

    `image` has the shape, type and header of all frames and the value 0 everywhere; it takes no memory.
    """

    def __init__(self, file: BinaryIO, dataset: Dataset, span: Span) -> None:
        self._file = file
        self._dataset = dataset
        self._span = span
        self._native = SYNTAXES[dataset.file_meta.TransferSyntaxUID].coding == "native"
        self._packed: Iterator[bytes] = iter(())
        self._next = -1  # frame that `_packed` gives next
        if self._native:
            check_native_length(dataset, span.length)
        rows, columns, frames = image_size(dataset)
        shape = frames, rows, columns, int(dataset.SamplesPerPixel)
        type_ = np.dtype(f"{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}")
        lossy = is_lossy(self._single(0))
        pixels = np.broadcast_to(np.zeros((), type_), shape)
        if lossy:
            declare_loss(dataset, pixels.nbytes / span.length)
        self.image = image_of(dataset, pixels, None, lossy)

    def check(self) -> None:
        """Walks over every compressed frame's own header, so that damage shows before the work begins."""
        if not self._native:
            with quiet("read"):
                check_frames(self._dataset, self._generate())

    def read(self, index: int) -> Image:
        """One frame as an image of its own. Raises CorruptImage, UnsupportedImage."""
        with quiet("read"):
            single = self._single(index)
            pixels, padding = separate_padding(single, decode_pixels(single))
            return image_of(self._dataset, pixels, padding, self.image.lossy)

    def _single(self, index: int) -> Dataset:
        """A dataset of one frame: what describes pixels, and the frame's own."""
        dataset = Dataset(self._dataset.group_dataset(_IMAGE_GROUP))
        dataset.file_meta = self._dataset.file_meta
        dataset[_NUMBER] = DataElement(_NUMBER, "IS", 1)  # a new element: the others are shared with the whole
        data = self._native_frame(index) if self._native else encapsulate([self._packed_frame(index)], has_bot=False)
        dataset[_PIXEL_DATA] = DataElement(_PIXEL_DATA, "OB" if dataset.BitsAllocated == 8 else "OW", data)
        return dataset

    def _native_frame(self, index: int) -> bytes:
        length = frame_bytes(self._dataset)
        self._file.seek(self._span.start + index * length)
        data = self._file.read(length)
        return data + b"\0" * (len(data) % 2)

    def _packed_frame(self, index: int) -> bytes:
        """Frames can only be found one after the other; who asks for them in order reads the file once."""
        if not 0 <= self._next <= index:
            self._packed, self._next = self._generate(), 0
        for frame in self._packed:
            self._next += 1
            if self._next > index:
                return frame
        raise CorruptImage(
            f"truncated: {self._next} compressed frames where {self.image.frames} are promised", "truncated"
        )

    def _generate(self) -> Iterator[bytes]:
        self._next = -1
        self._file.seek(self._span.start)
        return generate_frames(self._file, number_of_frames=image_size(self._dataset)[2])
