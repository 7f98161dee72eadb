"""Decoding and encoding of PNG, TIFF, JPEG and NPY over the table of reference images."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Picture
from PIL import ImageOps
from pydicom import dcmread
from pydicom.data import get_testdata_file

from models.errors import (
    OptionError,
    UnsupportedImage,
)
from models.imaging.codec import EXTENSIONS, MEDIA_TYPES, decode, encode
from models.imaging.image import Derivation, Image, ValueMap
from models.imaging.values import from_unit, to_unit
from tests.reference_images import (
    LOSSLESS,
    REFERENCES,
    Reference,
    draw,
    npy,
    png,
    png_chunk,
    saved,
    stacked,
    tiff,
)

ROOT = Path(__file__).parents[3]

by_name = {reference.name: reference for reference in REFERENCES}
shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
colour_shapes = shapes.map(lambda shape: (*shape, 3))
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


@given(arrays)
def test_compressed_tiff_holds_any_array(array: np.ndarray[Any, Any]) -> None:
    image = decode(tiff(array))
    compressed = replace(image, source=replace(image.source, compressed=True))
    data = encode(compressed)
    assert decode(data).source.compressed
    assert decode(data).pixels.tobytes() == image.pixels.tobytes()
    assert encode(compressed) == data


def test_tiff_of_several_strips_is_read_by_others() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.uint16, np.int16, np.float32):
        array = rng.normal(0, 1000, (301, 700)).astype(dtype)
        image = decode(tiff(array))
        data = encode(replace(image, source=replace(image.source, compressed=True)))
        assert np.array_equal(tifffile.imread(BytesIO(data)), array)


@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16]), shapes | colour_shapes))
def test_png_holds_any_array(array: np.ndarray[Any, Any]) -> None:
    pixels = array.reshape(*array.shape[:2], -1)
    image = decode(png(pixels, array.itemsize * 8, 0 if array.ndim == 2 else 2))
    assert np.array_equal(image.pixels[0], pixels)
    assert np.array_equal(decode(encode(image)).pixels, image.pixels)
    assert encode(image) == encode(image)


def test_other_readers_agree_with_our_encoders() -> None:
    for reference in LOSSLESS:
        data = encode(decode(reference.data))
        if reference.format == "png" and (reference.pixels.dtype == np.uint8 or reference.pixels.shape[-1] == 1):
            seen = np.asarray(Picture.open(BytesIO(data)))
        elif reference.format == "tiff":
            seen = np.stack([page.asarray() for page in tifffile.TiffFile(BytesIO(data)).pages])
        elif reference.format == "npy":
            seen = np.load(BytesIO(data), allow_pickle=False)
            assert seen.shape == np.load(BytesIO(reference.data)).shape
        else:
            continue
        assert seen.tobytes() == reference.pixels.tobytes(), reference


def test_rasters_are_read_without_pydicom_pydantic_or_torch(tmp_path: Path) -> None:
    paths = []
    for name in ("png_rgb16", "tiff_uint16_zlib", "jpeg_rgb", "npy_frames"):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(by_name[name].data)
    program = (
        "import sys; from pathlib import Path; from models.imaging.codec import decode, encode\n"
        "for path in sys.argv[1:]: encode(decode(Path(path).read_bytes()))\n"
        "sys.exit(', '.join({'pydicom', 'pydantic', 'torch'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


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


CT = Path(str(get_testdata_file("CT_small.dcm", download=False)))
DERIVATION = Derivation("denoise", 1, "tiny", "1", "0" * 64, "onnx", "fp32", {"strength": 1.0, "sigma": None})


def test_dicom_goes_through_the_same_door() -> None:
    image = decode(CT.read_bytes())
    assert image.format == "dicom"
    assert np.array_equal(decode(encode(image, derivation=DERIVATION)).pixels, image.pixels)


@pytest.mark.parametrize("format", ["tiff", "npy"])
def test_dicom_converts_with_its_stored_values(format: str) -> None:
    image = decode(CT.read_bytes())
    again = decode(encode(image, format))
    assert again.pixels.dtype == np.int16
    assert np.array_equal(again.pixels, image.pixels)
    if format == "tiff":
        assert again.spacing_mm == pytest.approx(image.spacing_mm, rel=1e-6)


def test_dicom_records_the_time_that_it_is_given() -> None:
    image = decode(CT.read_bytes())
    silent, told = (encode(image, None, DERIVATION, now) for now in (None, datetime(2024, 5, 6, 7, 8, 9)))
    assert "InstanceCreationTime" not in dcmread(BytesIO(silent))
    assert dcmread(BytesIO(told)).InstanceCreationDate == "20240506"


def test_signed_dicom_is_refused_as_png() -> None:
    with pytest.raises(UnsupportedImage) as error:
        encode(decode(CT.read_bytes()), "png")
    assert error.value.reason == "png_dtype"


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
