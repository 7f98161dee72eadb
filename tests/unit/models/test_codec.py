"""Decoding and encoding of PNG, TIFF, JPEG and NPY over the table of reference images."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Picture
from PIL import ImageOps

from models.errors import (
    CorruptImage,
    ImageError,
    ImageTooLarge,
    NonFinitePixels,
    OptionError,
    UnknownFormat,
    UnsupportedImage,
)
from models.imaging.codec import EXTENSIONS, MEDIA_TYPES, decode, encode
from models.imaging.image import Image, Limits, ValueMap
from models.imaging.values import from_unit, to_unit
from tests.reference_images import (
    LOSSLESS,
    REFERENCES,
    Reference,
    draw,
    npy,
    pack,
    png,
    png_chunk,
    png_header,
    saved,
    stacked,
    tiff,
)

by_name = {reference.name: reference for reference in REFERENCES}
shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
colour_shapes = shapes.map(lambda shape: (*shape, 3))
edits = st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4))
files = st.sampled_from([reference.data for reference in REFERENCES])
png_files = st.sampled_from([reference.data for reference in REFERENCES if reference.format == "png"])
magics = st.sampled_from(
    [b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"\xff\xd8\xff", b"\x93NUMPY\x01\0"]
)
arrays = st.sampled_from(["uint8", "int8", "uint16", "int16", "float32", "float64"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, shapes, elements={"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None
    )
)


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_reference_decodes(reference: Reference) -> None:
    image = decode(reference.data)
    assert image.format == reference.format
    assert image.pixels.dtype == reference.pixels.dtype
    assert image.pixels.dtype.isnative
    assert image.pixels.shape == reference.pixels.shape
    assert np.abs(image.pixels.astype(np.float64) - reference.pixels).max() <= reference.tolerance
    assert image.lossy == reference.lossy
    assert (image.values.scale < 0) == reference.inverted


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_identity_network_returns_the_same_pixels_and_kind(reference: Reference) -> None:
    image = decode(reference.data)
    restored, clipped = from_unit(to_unit(image), image)
    again = decode(encode(restored))
    assert clipped == 0
    assert again.pixels.dtype == image.pixels.dtype
    assert again.pixels.tobytes() == image.pixels.tobytes()
    assert again.values == image.values
    assert again.format == ("png" if reference.format == "jpeg" else reference.format)


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_encoding_is_deterministic(reference: Reference) -> None:
    image = decode(reference.data)
    assert encode(image) == encode(decode(reference.data))


@pytest.mark.parametrize("format", ["tiff", "npy"])
@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_every_image_converts_to_tiff_and_npy(reference: Reference, format: str) -> None:
    image = decode(reference.data)
    again = decode(encode(image, format))
    assert again.pixels.dtype == image.pixels.dtype
    assert again.pixels.tobytes() == image.pixels.tobytes()
    if format == "tiff":
        assert np.sign(again.values.scale) == np.sign(image.values.scale)


@given(arrays)
def test_npy_and_tiff_hold_any_array(array: np.ndarray[Any, Any]) -> None:
    for data in (npy(array), tiff(array)):
        image = decode(data)
        assert image.pixels.tobytes() == array.tobytes()
        assert decode(encode(image)).pixels.tobytes() == array.tobytes()


@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16]), shapes | colour_shapes))
def test_png_holds_any_array(array: np.ndarray[Any, Any]) -> None:
    pixels = array.reshape(*array.shape[:2], -1)
    image = decode(png(pixels, array.itemsize * 8, 0 if array.ndim == 2 else 2))
    assert np.array_equal(image.pixels[0], pixels)
    assert np.array_equal(decode(encode(image)).pixels, image.pixels)


def test_other_readers_agree_with_our_encoders() -> None:
    for reference in LOSSLESS:
        data = encode(decode(reference.data))
        if reference.format == "png" and reference.pixels.dtype == np.uint8:
            seen = np.asarray(Picture.open(BytesIO(data)))
        elif reference.format == "tiff":
            seen = np.stack([page.asarray() for page in tifffile.TiffFile(BytesIO(data)).pages])
        elif reference.format == "npy":
            seen = np.load(BytesIO(data), allow_pickle=False)
            assert seen.shape == np.load(BytesIO(reference.data)).shape
        else:
            continue
        assert seen.tobytes() == reference.pixels.tobytes(), reference


# Formats of answers


def test_jpeg_is_answered_as_png_and_never_written() -> None:
    image = decode(by_name["jpeg_rgb"].data)
    assert encode(image).startswith(b"\x89PNG")
    with pytest.raises(OptionError, match="png"):
        encode(image, "jpeg")


@pytest.mark.parametrize(("name", "reason"), [
    ("tiff_int16", "png_dtype"), ("tiff_int8", "png_dtype"), ("npy_float32", "png_dtype"),
    ("tiff_three_pages", "png_frames"),
])  # fmt: skip
def test_png_refuses_what_it_cannot_hold(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedImage) as error:
        encode(decode(by_name[name].data), "png")
    assert error.value.reason == reason


def test_png_mirrors_an_inverted_sense_within_the_stored_range() -> None:
    pixels = np.array([[[[0], [4095], [100]]]], np.uint16)
    image = Image(pixels, ValueMap(-1 / 4095, 1.0), "dicom", 0, 4095)
    assert decode(encode(image, "png")).pixels.ravel().tolist() == [4095, 0, 3995]


def test_only_dicom_becomes_dicom() -> None:
    with pytest.raises(UnsupportedImage) as error:
        encode(decode(by_name["png_1x1"].data), "dicom")
    assert error.value.reason == "dicom_source"


def test_dicom_answer_needs_a_derivation() -> None:
    image = replace(decode(by_name["png_1x1"].data), format="dicom")
    with pytest.raises(OptionError, match="derivation"):
        encode(image)


def test_every_format_has_a_media_type_and_an_extension() -> None:
    assert set(MEDIA_TYPES) == set(EXTENSIONS) == {reference.format for reference in REFERENCES} | {"dicom"}


# Resolution and colour profiles


def test_png_resolution_follows_the_scale() -> None:
    data = png(draw("uint16", 4, 6)[..., None], 16, 0, (b"pHYs", struct.pack(">IIB", 2000, 4000, 1)))
    image = decode(data)
    assert image.spacing_mm == (0.25, 0.5)
    doubled = image.with_pixels(image.pixels.repeat(2, 1).repeat(2, 2), scale=2)
    assert decode(encode(doubled)).spacing_mm == (0.125, 0.25)
    assert decode(encode(doubled, "tiff")).spacing_mm == pytest.approx((0.125, 0.25), rel=1e-6)


@pytest.mark.parametrize(("unit", "spacing"), [(2, (25.4 / 300, 25.4 / 150)), (3, (10 / 300, 10 / 150)), (1, None)])
def test_tiff_resolution(unit: int, spacing: tuple[float, float] | None) -> None:
    image = decode(tiff(draw("uint8", 5, 5), resolution=(150, 300), resolutionunit=unit))
    assert image.spacing_mm == pytest.approx(spacing)
    assert decode(encode(image)).spacing_mm == pytest.approx(spacing, abs=1e-6)


def test_jpeg_resolution_turns_with_the_picture() -> None:
    turn = Picture.Exif()
    turn[0x0112] = 6
    picture = Picture.fromarray(draw("uint8", 6, 9))
    assert decode(saved(picture, "JPEG", dpi=(254, 127))).spacing_mm == pytest.approx((0.2, 0.1))
    assert decode(saved(picture, "JPEG", dpi=(254, 127), exif=turn)).spacing_mm == pytest.approx((0.1, 0.2))


def test_colour_profile_passes_from_format_to_format() -> None:
    profile = bytes(range(256)) * 3
    picture = Picture.fromarray(draw("uint8", 6, 9, 3))
    for data in (
        saved(picture, "JPEG", icc_profile=profile),
        saved(picture, "PNG", icc_profile=profile),
        tiff(draw("uint8", 6, 9, 3), photometric="rgb", iccprofile=profile),
    ):
        png_answer, tiff_answer = encode(decode(data), "png"), encode(decode(data), "tiff")
        assert Picture.open(BytesIO(png_answer)).info["icc_profile"] == profile
        assert decode(tiff_answer).source.icc == profile


def test_text_does_not_come_back() -> None:
    data = png(draw("uint8", 4, 4)[..., None], 8, 0, (b"tEXt", b"Comment\0Doe^Jane"))
    described = tiff(draw("uint8", 4, 4), description="Doe^Jane", extratags=[(65000, "s", 8, "Doe^Jane", True)])
    for file in (data, described):
        assert b"Doe" in file
        assert b"Doe" not in encode(decode(file))


def test_gamma_comes_back_but_a_damaged_profile_does_not() -> None:
    gamma = struct.pack(">I", 45455)
    data = png(draw("uint8", 4, 4)[..., None], 8, 0, (b"gAMA", gamma), (b"iCCP", b"x\0\0no zlib"))
    answer = encode(decode(data))
    assert png_chunk(b"gAMA", gamma) in answer
    assert b"iCCP" not in answer


@pytest.mark.parametrize(
    ("name", "word"), [("png_grey2", "2-bit"), ("png_palette", "RGB"), ("png_palette_of_greys", "grey")]
)
def test_expansion_is_said(name: str, word: str) -> None:
    (note,) = decode(by_name[name].data).source.notes
    assert word in note


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow(orientation: int) -> None:
    exif = Picture.Exif()
    exif[0x0112] = orientation
    pixels = np.kron(draw("uint8", 2, 3, low=40, high=200), np.ones((8, 8), np.uint8))
    data = saved(Picture.fromarray(pixels), "JPEG", quality=95, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Picture.open(BytesIO(data))))
    assert np.array_equal(decode(data).pixels, stacked(upright))
    exact = ImageOps.exif_transpose(Picture.open(BytesIO(saved(Picture.fromarray(pixels), "PNG", exif=exif))))
    turned = tiff(pixels, extratags=[(274, "H", 1, orientation, True)])
    assert np.array_equal(decode(turned).pixels, stacked(np.asarray(exact)))


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


# Damage


@pytest.mark.parametrize("data", [b"", b"\0", b"hello, this is text", bytes(500), b"GIF89a" + bytes(300)])
def test_other_content_is_unknown(data: bytes) -> None:
    with pytest.raises(UnknownFormat):
        decode(data)


def test_name_does_not_make_the_format() -> None:
    assert decode(by_name["png_1x1"].data, hint="picture.tiff").format == "png"
    with pytest.raises(UnknownFormat, match="empty"):
        decode(b"", hint="scan.dcm")


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


@settings(max_examples=400)
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
