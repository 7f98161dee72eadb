"""What the codecs refuse: content out of scope, images over the limits, damaged files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from models.errors import (
    CorruptImage,
    ImageError,
    ImageTooLarge,
    NonFinitePixels,
    UnknownFormat,
    UnsupportedImage,
)
from models.imaging.codec import decode
from models.imaging.image import Limits
from models.imaging.values import to_unit
from tests.reference_images import (
    REFERENCES,
    Reference,
    draw,
    npy,
    pack,
    png,
    png_chunk,
    png_header,
    saved,
    tiff,
)

by_name = {reference.name: reference for reference in REFERENCES}
edits = st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4))
files = st.sampled_from([reference.data for reference in REFERENCES])
png_files = st.sampled_from([reference.data for reference in REFERENCES if reference.format == "png"])
magics = st.sampled_from(
    [b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"\xff\xd8\xff", b"\x93NUMPY\x01\0"]
)


# Refusals


def _translucent() -> np.ndarray[Any, Any]:
    return np.concatenate([draw("uint8", 4, 5, 3), draw("uint8", 4, 5, 1)], -1)


REFUSED = [
    ("alpha", png(_translucent(), 8, 6)),
    ("alpha", png(draw("uint16", 4, 5, 2), 16, 4)),
    ("alpha", png(np.array([[[0], [9]]]), 8, 0, (b"tRNS", b"\0\x09"))),
    ("alpha", png(np.array([[[0], [1]]]), 1, 3, (b"PLTE", bytes(6)), (b"tRNS", b"\x80"))),
    ("alpha", tiff(_translucent(), photometric="rgb", extrasamples=["assocalpha"])),
    ("animation", png(draw("uint8", 3, 3)[..., None], 8, 0, (b"acTL", bytes(8)))),
    ("extra_samples", tiff(_translucent(), photometric="rgb", extrasamples=["unspecified"])),
    ("extra_samples", tiff(draw("uint8", 4, 5, 2), extrasamples=["unspecified"], planarconfig="contig")),
    ("bit_depth", tiff(draw("uint16", 4, 5).astype(np.uint32))),
    ("bit_depth", tiff(draw("float32", 4, 5).astype(np.float16))),
    ("bit_depth", tiff(draw("uint16", 4, 8, high=4095), bitspersample=12)),
    ("bit_depth", tiff(draw("uint8", 4, 8, high=1).astype(bool))),
    ("bit_depth", tiff(draw("float32", 4, 5).astype(np.complex64))),
    ("colour", tiff(draw("uint8", 4, 5, 4), photometric="separated")),
    ("colour", tiff(draw("uint8", 4, 5), photometric="palette", colormap=draw("uint16", 3, 256))),
    ("compression", tiff(draw("uint8", 16, 16), compression="jpeg2000")),
    ("volume", tiff(draw("uint8", 2, 16, 16), volumetric=True)),
    ("extra_pages", tiff(draw("uint8", 4, 5), subfiletype=1)),
    ("cmyk", saved(Picture.fromarray(draw("uint8", 4, 5, 4), "CMYK"), "JPEG")),
    ("dtype", npy(draw("uint16", 4, 5).astype(np.int64))),
    ("dtype", npy(draw("float32", 4, 5).astype(np.float16))),
    ("dtype", npy(np.zeros((2, 2), bool))),
    ("dtype", npy(np.zeros((2, 2), [("a", "u1")]))),
    ("shape", npy(np.zeros(5, np.uint8))),
    ("shape", npy(np.zeros((1, 2, 3, 4), np.uint8))),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "data"), REFUSED, ids=[f"{reason}-{i}" for i, (reason, _) in enumerate(REFUSED)])
def test_out_of_scope_content_is_refused_with_its_reason(reason: str, data: bytes) -> None:
    with pytest.raises(UnsupportedImage) as error:
        decode(data)
    assert error.value.reason == reason


def test_pickled_npy_is_refused_without_unpickling() -> None:
    stream = BytesIO()
    np.save(stream, np.array([[print]], dtype=object), allow_pickle=True)
    with pytest.raises(UnsupportedImage):
        decode(stream.getvalue())


def _pages(*pages: np.ndarray[Any, Any], **options: Any) -> bytes:
    stream = BytesIO()
    with tifffile.TiffWriter(stream, **options) as writer:
        for page in pages:
            writer.write(page, photometric="minisblack", metadata=None)
    return stream.getvalue()


def test_pages_of_different_kind_are_refused() -> None:
    for other in (draw("uint16", 4, 5), draw("uint8", 5, 4)):
        with pytest.raises(UnsupportedImage) as error:
            decode(_pages(draw("uint8", 4, 5), other))
        assert error.value.reason == "extra_pages"


def test_sub_images_are_refused() -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(draw("uint8", 32, 32), subifds=1, metadata=None)
        writer.write(draw("uint8", 16, 16), subfiletype=1, metadata=None)
    with pytest.raises(UnsupportedImage) as error:
        decode(stream.getvalue())
    assert error.value.reason == "extra_pages"


def test_imagej_stack_without_page_directories_is_refused() -> None:
    page = tiff(draw("uint8", 4, 5), description="ImageJ=1.53\nimages=7\nslices=7\n", software="ImageJ")
    with pytest.raises(UnsupportedImage) as error:
        decode(page)
    assert error.value.reason == "extra_pages"


@pytest.mark.parametrize("write", [npy, tiff])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_counted_and_refused(write: Callable[..., bytes], value: float) -> None:
    pixels = draw("float32", 4, 5)
    pixels[1, 2] = pixels[3, 4] = value
    with pytest.raises(NonFinitePixels, match="2 of 20"):
        decode(write(pixels))


# Limits, judged from the header


def test_bytes_are_limited() -> None:
    with pytest.raises(ImageTooLarge, match="bytes"):
        decode(by_name["png_1x1"].data, Limits(bytes=10))


def test_giant_png_is_refused_by_its_header_alone() -> None:
    with pytest.raises(ImageTooLarge, match="100000 x 100000"):
        decode(png_header(100_000, 100_000, 16, 0))


def test_giant_tiff_is_refused_by_its_header_alone() -> None:
    data = bytearray(tiff(draw("uint8", 4, 5)))
    for tag in (256, 257):
        at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
        data[at : at + 4] = struct.pack("<I", 100_000)
    with pytest.raises(ImageTooLarge, match="100000 x 100000"):
        decode(bytes(data))


def test_giant_jpeg_is_refused_by_its_header_alone() -> None:
    data = bytearray(by_name["jpeg_grey"].data)
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(ImageTooLarge, match="65000 x 65000"):
        decode(bytes(data))


def test_giant_npy_is_refused_and_a_smaller_lie_is_corrupt() -> None:
    data = npy(np.zeros((100, 100), np.uint8))
    with pytest.raises(ImageTooLarge):
        decode(data.replace(b"(100, 100)", b"(1000000000, 1000000000)"))
    with pytest.raises(CorruptImage, match="promises"):
        decode(data.replace(b"(100, 100)", b"(900, 900)"))


@pytest.mark.parametrize("data", [tiff(draw("uint8", 6, 4, 5)), npy(draw("uint8", 6, 4, 5))])
def test_frames_and_their_pixels_are_limited(data: bytes) -> None:
    assert decode(data, Limits(frames=6, pixels=120)).frames == 6
    with pytest.raises(ImageTooLarge, match="frames"):
        decode(data, Limits(frames=5))
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode(data, Limits(pixels=119))


def test_giant_tiff_tiles_are_refused() -> None:
    with pytest.raises(ImageTooLarge, match="tiles"):
        decode(tiff(draw("uint8", 4, 5), tile=(64, 64)), Limits(pixels=4000))


def test_png_of_endless_chunks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.imaging.raster_png.CHUNKS_MAX", 3)
    assert decode(by_name["png_1x1"].data).samples == 1
    with pytest.raises(ImageTooLarge, match="chunks"):
        decode(by_name["png_palette"].data)


# Damage


@pytest.mark.parametrize("data", [b"", b"\0", b"hello, this is text", bytes(500), b"GIF89a" + bytes(300)])
def test_other_content_is_unknown(data: bytes) -> None:
    with pytest.raises(UnknownFormat):
        decode(data)


def test_name_does_not_make_the_format() -> None:
    assert decode(by_name["png_1x1"].data, hint="scan.dcm").format == "png"
    with pytest.raises(UnknownFormat, match="empty"):
        decode(b"", hint="scan.dcm")


@pytest.mark.parametrize("hint", ["scan.dcm", "SCAN.DCM", "application/dicom; transfer-syntax=*"])
def test_text_called_dicom_is_told_what_is_missing(hint: str) -> None:
    with pytest.raises(UnknownFormat, match="Part 10"):
        decode(b"no image at all" * 50, hint=hint)


def test_lack_of_memory_is_too_large_not_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("models.imaging.raster_png.imagecodecs.png_decode", exhaust)
    with pytest.raises(ImageTooLarge, match="memory"):
        decode(by_name["png_1x1"].data)


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_cut_files_are_corrupt(reference: Reference) -> None:
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(CorruptImage):
            decode(reference.data[: int(len(reference.data) * share)])


def test_circle_of_tiff_pages_is_corrupt() -> None:
    data = bytearray(tiff(draw("uint8", 4, 5)))
    entries = struct.unpack_from("<H", data, 8)[0]
    data[10 + entries * 12 : 14 + entries * 12] = struct.pack("<I", 8)
    with pytest.raises(CorruptImage, match="circle"):
        decode(bytes(data))


def test_png_aspect_ratio_is_no_spacing() -> None:
    grey = draw("uint8", 4, 4)[..., None]
    for content in (struct.pack(">IIB", 2, 1, 0), struct.pack(">IIB", 0, 1, 1), b"short"):
        assert decode(png(grey, 8, 0, (b"pHYs", content))).spacing_mm is None


def test_tiff_without_an_image_is_corrupt() -> None:
    with pytest.raises(CorruptImage, match="no image"):
        decode(b"II*\0" + bytes(60))


def test_page_that_the_tiff_decoder_passes_over_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.imaging.raster_tiff._count_pages", lambda *_: 2)
    with pytest.raises(CorruptImage, match="page"):
        decode(by_name["tiff_uint8"].data)


def test_tiff_decoder_that_disagrees_with_the_header_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: np.zeros((1, 1, 3, 3, 1), np.uint8))
    with pytest.raises(CorruptImage, match="another size"):
        decode(by_name["tiff_uint8"].data)


def test_missing_tiff_strip_is_corrupt_not_zero() -> None:
    data = bytearray(tiff(draw("uint16", 32, 32), compression="zlib", rowsperstrip=8))
    page = tifffile.TiffFile(BytesIO(bytes(data))).pages[0]
    tag = page.tags[279]  # StripByteCounts
    data[tag.valueoffset : tag.valueoffset + 2] = bytes(2)
    with pytest.raises(CorruptImage):
        decode(bytes(data))


def test_jpeg_larger_than_its_tiff_strip_is_corrupt() -> None:
    data = tiff(draw("uint8", 16, 16), compression="jpeg")
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(CorruptImage):
        decode(data[:at] + struct.pack(">HH", 60000, 60000) + data[at + 4 :])


@pytest.mark.parametrize(
    ("marker", "bits", "reason"), [(0xC3, 8, "jpeg_lossless"), (0xC1, 12, "bit_depth"), (0xC3, 16, "jpeg_lossless")]
)
def test_other_kinds_of_jpeg_are_refused(marker: int, bits: int, reason: str) -> None:
    data = by_name["jpeg_grey"].data
    at = data.index(b"\xff\xc0")
    with pytest.raises(UnsupportedImage) as error:
        decode(data[: at + 1] + bytes([marker]) + data[at + 2 : at + 4] + bytes([bits]) + data[at + 5 :])
    assert error.value.reason == reason


def test_fill_bytes_between_jpeg_markers_are_skipped() -> None:
    data = by_name["jpeg_grey"].data
    at = data.index(b"\xff\xc0")
    assert np.array_equal(decode(data[:at] + b"\xff\xff" + data[at:]).pixels, decode(data).pixels)


def test_jpeg_of_two_sizes_is_corrupt() -> None:
    data = by_name["jpeg_grey"].data
    at = data.index(b"\xff\xc0")
    frame = data[at : at + 13]
    with pytest.raises(CorruptImage):
        decode(data[:at] + frame[:5] + b"\0\x09\0\x09" + frame[9:] + frame + data[at + 13 :])


def test_png_with_a_wrong_checksum_is_corrupt() -> None:
    data = bytearray(by_name["png_rgb16"].data)
    data[-20] ^= 1
    with pytest.raises(CorruptImage, match="checksum"):
        decode(bytes(data))


@pytest.mark.parametrize(("depth", "colour"), [(3, 0), (8, 1), (4, 2), (16, 3), (0, 0)])
def test_png_colour_types_that_do_not_exist(depth: int, colour: int) -> None:
    with pytest.raises(CorruptImage):
        decode(
            png_header(1, 1, depth, colour) + png_chunk(b"IDAT", pack(np.zeros(9, int), 8)) + png_chunk(b"IEND", b"")
        )


@pytest.mark.parametrize("header", [
    b"{'descr': '|u1', 'fortran_order': False}", b"{'descr': '|u1', 'fortran_order': 0, 'shape': (1, 1)}",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1)}", b"__import__('os')", b"[" * 200, b"\xff\xfe", b"1",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 1)}",
])  # fmt: skip
def test_bad_npy_headers_are_corrupt(header: bytes) -> None:
    with pytest.raises(CorruptImage):
        decode(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0")


def test_empty_array_is_corrupt() -> None:
    with pytest.raises(CorruptImage, match="without pixels"):
        decode(npy(np.zeros((0, 5), np.uint8)))


def _decodes_or_refuses(data: bytes) -> None:
    """Nothing but ImageError escapes, and whatever decodes is sound."""
    try:
        image = decode(data, Limits(pixels=1_000_000, frames=50))
    except ImageError:
        return
    assert image.pixels.ndim == 4
    assert np.isfinite(image.pixels).all()
    assert np.isfinite(to_unit(image)).all()


@settings(max_examples=200)
@given(files, st.lists(edits, min_size=1, max_size=4))
def test_overwritten_files_decode_or_are_refused(data: bytes, changes: list[tuple[float, bytes]]) -> None:
    damaged = bytearray(data)
    for place, content in changes:
        at = int(place * len(damaged))
        damaged[at : at + len(content)] = content
    _decodes_or_refuses(bytes(damaged))


@settings(max_examples=200)
@given(files, st.integers(0, 160), st.binary(min_size=1, max_size=2))
def test_overwritten_headers_decode_or_are_refused(data: bytes, at: int, content: bytes) -> None:
    _decodes_or_refuses(data[:at] + content + data[at + len(content) :])


@settings(max_examples=100)
@given(files, st.floats(0, 1), st.floats(0, 1), st.binary(max_size=8))
def test_spliced_files_decode_or_are_refused(data: bytes, first: float, second: float, between: bytes) -> None:
    head, tail = sorted((int(first * len(data)), int(second * len(data))))
    _decodes_or_refuses(data[:head] + between + data[tail:])


@settings(max_examples=200)
@given(magics, st.binary(max_size=300))
def test_random_bytes_after_a_magic_number_are_refused(magic: bytes, rest: bytes) -> None:
    with pytest.raises(ImageError):
        decode(magic + rest, Limits(pixels=1_000_000, frames=50))


def _rechecked_png(data: bytes, at: int, content: bytes) -> bytes:
    """The PNG with bytes of its IDAT replaced and the checksum made right again, so that the decoder sees them."""
    start = data.index(b"IDAT")
    size = int.from_bytes(data[start - 4 : start], "big")
    body = bytearray(data[start + 4 : start + 4 + size])
    body[at % size : at % size + len(content)] = content
    return data[: start - 4] + png_chunk(b"IDAT", bytes(body[:size])) + data[start + 8 + size :]


@settings(max_examples=200)
@given(png_files, st.integers(0, 999), st.binary(min_size=1, max_size=4))
def test_damaged_png_pixels_are_refused(data: bytes, at: int, content: bytes) -> None:
    _decodes_or_refuses(_rechecked_png(data, at, content))
