"""Images larger than memory: frames read from a file one by one, and written one by one.

NPY and DICOM files are read frame by frame. Other formats, and what DICOM cannot give by the frame,
are decoded whole, within the limits for images that are held in memory. What comes out is what
`codec` makes of the same image held in memory, byte for byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from models.errors import CorruptImage, ImageError, ImageTooLarge
from models.imaging import raster_npy, raster_tiff
from models.imaging.codec import decode, detect_format, encode
from models.imaging.image import Derivation, Image, Limits, frame_of
from models.imaging.policy import DEFAULT, Policy

Array = np.ndarray[Any, Any]

_MAGIC_BYTES = 132  # enough to tell any format


class Frames(Protocol):
    """An image of which one frame at a time is in memory."""

    @property
    def image(self) -> Image:
        """Everything but the values: its pixels have shape and type, and take no memory."""

    def check(self) -> None:
        """Finds damage that can be found without decoding. Raises ImageError."""

    def read(self, index: int) -> Image:
        """One frame as an image of its own. Raises ImageError."""


class WholeFrames:
    """The frames of an image that is in memory."""

    def __init__(self, image: Image) -> None:
        self.image = image

    def check(self) -> None:
        """Nothing: decoding found everything."""

    def read(self, index: int) -> Image:
        """One frame; nothing is copied."""
        return frame_of(self.image, index)


@contextmanager
def open_frames(path: Path, limits: Limits, whole: Limits, hint: str | None = None) -> Iterator[Frames]:
    """The frames of an image file. `limits` are those of files, `whole` those of what is in memory at one time.

    `hint` is as for `codec.decode`. Raises ImageError.
    """
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        try:
            frames = _open(file, limits, whole, hint)
        except ImageError:
            raise
        except Exception as exc:  # damaged files raise anything
            raise CorruptImage(f"the file is damaged: it cannot be decoded ({type(exc).__name__})") from exc
        yield frames


def _open(file: BinaryIO, limits: Limits, whole: Limits, hint: str | None) -> Frames:
    size = file.seek(0, os.SEEK_END)
    if size > limits.bytes:
        raise ImageTooLarge(f"the file has {size} bytes, more than the limit of {limits.bytes}")
    file.seek(0)
    format = detect_format(file.read(_MAGIC_BYTES), hint)
    file.seek(0)
    frames: Frames | None = None
    if format == "npy":
        frames = raster_npy.open_npy_frames(file, limits)
    elif format == "dicom":
        from models.imaging.dicom import open_dicom_frames

        frames = open_dicom_frames(file, limits, whole)
    if frames is None:
        file.seek(0)
        if size > whole.bytes:
            raise ImageTooLarge(f"{format} files of this kind are read whole, up to {whole.bytes} bytes")
        return WholeFrames(decode(file.read(), whole, hint))
    rows, columns = frames.image.pixels.shape[1:3]
    if rows * columns > whole.pixels:
        raise ImageTooLarge(f"one frame has {rows} x {columns} pixels, more than the limit of {whole.pixels}")
    return frames


class FrameFile:
    """Frames of one shape and type in a file, native values one after the other and nothing else."""

    def __init__(self, path: Path, image: Image, format: str) -> None:
        """`path` is a file that is there; `image` has the frames' number, shape and type; `format` is what
        they will be encoded as."""
        self.image = image
        self.format = format
        self._path = path
        frame = image.pixels[:1]
        self._shape, self._dtype = frame.shape, frame.dtype.newbyteorder("<")
        self._frame_bytes = frame.nbytes

    def write(self, index: int, frame: Image) -> None:
        """Puts one frame in its place. Returns when it is on the disk."""
        if self.format == "dicom":
            from models.imaging.dicom import native_pixels

            data = native_pixels(frame)
        else:
            data = frame.pixels.astype(self._dtype, copy=False).tobytes()
        with self._path.open("r+b") as file:
            file.seek(index * self._frame_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def encode(
        self, target: Path, derivation: Derivation, now: datetime | None = None, policy: Policy = DEFAULT
    ) -> None:
        """Writes the image into a file, as `codec.encode` would."""
        with self._path.open("r+b") as file, target.open("wb") as out:
            file.truncate(self.image.frames * self._frame_bytes)
            if self.format == "dicom":
                from models.imaging.dicom import write_dicom

                if file.seek(0, os.SEEK_END) % 2:
                    file.write(b"\0")
                file.seek(0)
                write_dicom(out, self.image, derivation, file, now, policy)
            elif self.format == "npy":
                raster_npy.write_header(out, self.image)
                shutil.copyfileobj(file, out)
            elif self.format == "tiff":
                raster_tiff.write_tiff(out, self.image, self._frames(file))
            else:  # one frame
                pixels = next(self._frames(file))[np.newaxis]
                out.write(encode(replace(self.image, pixels=pixels), self.format, derivation))
            out.flush()
            os.fsync(out.fileno())

    def _frames(self, file: BinaryIO) -> Iterator[Array]:
        """(rows, columns, samples) of every frame."""
        for _ in range(self.image.frames):
            data = np.frombuffer(file.read(self._frame_bytes), self._dtype)
            yield data.reshape(self._shape[1:]).astype(self._dtype.newbyteorder("="), copy=False)
