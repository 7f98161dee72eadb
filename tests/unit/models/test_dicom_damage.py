"""Damaged DICOM files: an Image or an ImageError, never anything else."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid

from models.errors import CorruptImage, ImageError
from models.imaging.dicom import decode_dicom, encode_dicom
from models.imaging.dicom.codestream import check_run_lengths, read_codestream
from models.imaging.image import Limits
from tests.dicom_objects import DENOISE, compressed, grey, packaged, packaged_in_scope

SMALL = packaged_in_scope(most_bytes=45_000)
FILES = {name: packaged(name) for name in SMALL}
LIMITS = Limits(pixels=2_000_000, frames=64)

edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=30)


def decode_or_refuse(data: bytes) -> None:
    try:
        image = decode_dicom(data, LIMITS)
        assert image.pixels.size
        again = decode_dicom(encode_dicom(image, DENOISE), LIMITS)
    except ImageError:
        return
    np.testing.assert_array_equal(image.pixels, again.pixels)


# Derandomised: the decoders are C libraries, and what aborts one of them should be found by hand.
@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(SMALL), changes=edits, header=st.booleans())
def test_changed_bytes_decode_or_are_refused(name: str, changes: list[tuple[float, int]], header: bool) -> None:
    data = bytearray(FILES[name])
    last = min(len(data), 2000) if header else len(data)
    for place, value in changes:
        data[132 + int(place * (last - 132))] = value
    decode_or_refuse(bytes(data))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(name=st.sampled_from(SMALL), start=st.floats(0, 1), length=st.integers(1, 300))
def test_missing_bytes_decode_or_are_refused(name: str, start: float, length: int) -> None:
    data = FILES[name]
    first = int(start * len(data))
    decode_or_refuse(data[:first] + data[first + length :])


def test_no_file_of_random_bytes_decodes() -> None:
    random = np.random.default_rng(0)
    for size in (0, 1, 127, 132, 1000, 100_000):
        noise = random.integers(0, 256, size, np.uint8).tobytes()
        for data in (noise, bytes(128) + b"DICM" + noise):
            with pytest.raises(ImageError):
                decode_dicom(data)


# Codestreams that would crash, hang or exhaust a decoder


def jpeg_segment(code: int, content: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


FRAME_HEADER = jpeg_segment(0xC3, struct.pack(">BHHB", 8, 4, 4, 1) + bytes([1, 0x11, 0]))
SCAN = jpeg_segment(0xDA, bytes([1, 1, 0, 1, 0, 0])) + b"\xff\xd9"


@pytest.mark.parametrize(
    "header",
    [
        b"\x00\x00" + FRAME_HEADER,  # bytes between segments
        jpeg_segment(0xD4, b"\0" * 8) + FRAME_HEADER,  # a restart marker with a body
        jpeg_segment(0xE0, b"JFIF\0\x09\x01" + bytes(7)) + FRAME_HEADER,
        jpeg_segment(0xEE, b"Adobe" + bytes(6) + b"\x07") + FRAME_HEADER,
        b"\xff\xe1\x00\x00" + FRAME_HEADER,  # a segment shorter than its own length field
        b"",  # a scan without a frame
    ],
)
def test_jpeg_headers_that_abort_gdcm_are_refused(header: bytes) -> None:
    for good in (FRAME_HEADER, jpeg_segment(0xE0, b"JFIF\0\x01\x01" + bytes(7)) + b"\xff" + FRAME_HEADER):
        assert read_codestream(b"\xff\xd8" + good + SCAN, "jpeg").samples == 1
    with pytest.raises(CorruptImage):
        read_codestream(b"\xff\xd8" + header + SCAN, "jpeg")


def test_a_jpeg2000_file_with_a_box_without_length_is_refused() -> None:
    pixels = grey(32, 32, "uint16", 0, 4096)
    good = imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", reversible=True)
    np.testing.assert_array_equal(
        decode_dicom(compressed(pixels, lambda _: good, uid.JPEG2000Lossless)).pixels[0, ..., 0], pixels
    )
    box = good.index(b"jp2h") - 4
    endless = good[:box] + bytes(4) + good[box + 4 :]
    with pytest.raises(CorruptImage):
        decode_dicom(compressed(pixels, lambda _: endless, uid.JPEG2000Lossless))


def test_a_jpeg2000_frame_of_millions_of_tiles_is_refused() -> None:
    with pytest.raises(CorruptImage, match="tiles"):
        decode_dicom(packaged("JPEG2000-embedded-sequence-delimiter.dcm"))


@pytest.mark.parametrize("coding", ["jpeg", "jpeg-ls", "jpeg2000"])
@pytest.mark.parametrize(
    "frame", [b"", b"\xff\xd9", b"\xff\xd8\xff\xd9", b"\xff\x4f\xff\x51\xff\xd9", b"\xff\xff\xff\xd9"]
)
def test_fragments_of_codestreams_are_refused(frame: bytes, coding: str) -> None:
    with pytest.raises(CorruptImage):
        read_codestream(frame, coding)


def test_run_lengths_that_unpack_without_end_are_refused() -> None:
    bomb = bytes(64) + b"\x81\x00" * (3 * 1024**2)
    with pytest.raises(CorruptImage):
        check_run_lengths(bomb, expected=1_000_000)
    literal = bytes(64) + (b"\x7f" + bytes(128)) * 40_000
    check_run_lengths(literal, expected=40_000 * 128)
