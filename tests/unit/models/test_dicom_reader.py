"""Decoding DICOM: every coding, the meaning of values, and what is refused."""

from __future__ import annotations

import logging
import threading
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.pixels.decoders.base import Decoder
from pydicom.pixels.processing import apply_rescale

from models.errors import ImageError
from models.imaging.dicom import decode_dicom
from models.imaging.dicom.syntax import SYNTAXES
from models.imaging.image import Limits
from tests.dicom_objects import (
    PACKAGED,
    PACKAGED_REFUSED,
    compressed,
    dataset_of,
    deflated,
    enhanced,
    file_of,
    grey,
    packaged,
    packaged_in_scope,
    read,
)


def reason_of(data: bytes, limits: Limits = Limits()) -> str:  # noqa: B008
    """How a file is refused."""
    with pytest.raises(ImageError) as caught:
        decode_dicom(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("name", sorted(p.name for p in PACKAGED.glob("*.dcm")))
def test_packaged_files_decode_or_are_refused_for_their_reason(name: str) -> None:
    if name in PACKAGED_REFUSED:
        assert reason_of(packaged(name)) == PACKAGED_REFUSED[name]
        return
    image, dataset = decode_dicom(packaged(name)), read(packaged(name))
    frames = int(dataset.get("NumberOfFrames") or 1)
    assert image.pixels.shape == (frames, dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    assert image.bits == dataset.BitsAllocated
    assert (image.pixels.dtype.kind == "i") == bool(dataset.PixelRepresentation)
    assert image.pixels.dtype.isnative
    assert image.format == "dicom"


@pytest.mark.parametrize(
    "names",
    [
        [
            "MR_small.dcm",
            "MR_small_RLE.dcm",
            "MR_small_bigendian.dcm",
            "MR_small_expb.dcm",
            "MR_small_implicit.dcm",
            "MR_small_jp2klossless.dcm",
            "MR_small_jpeg_ls_lossless.dcm",
            "MR_small_padded.dcm",
        ],
        ["SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm"],
        ["SC_rgb_rle.dcm", "SC_rgb_jpeg_gdcm.dcm"],
    ],
)
def test_lossless_siblings_decode_equal(names: list[str]) -> None:
    first, *others = (decode_dicom(packaged(name)) for name in names)
    for other in others:
        np.testing.assert_array_equal(first.pixels, other.pixels)
        assert first.values == other.values
        assert not other.lossy


def lossless_jpeg(plane: Any) -> bytes:
    return imagecodecs.ljpeg_encode(plane, bitspersample=12)


def lossless_htj2k(plane: Any) -> bytes:
    return imagecodecs.htj2k_encode(plane, reversible=True)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (uid.JPEGLossless, lossless_jpeg),
        (uid.JPEGLosslessSV1, lossless_jpeg),
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
        (uid.HTJ2KLossless, lossless_htj2k),
        (uid.HTJ2KLosslessRPCL, lossless_htj2k),
    ],
)
def test_lossless_syntax_gives_back_every_value(syntax: str, encode: Any) -> None:
    pixels = np.stack([grey(40, 30, "uint16", 0, 4096), grey(40, 30, "uint16", 0, 2000)])
    image = decode_dicom(compressed(pixels, encode, syntax, BitsStored=12))
    np.testing.assert_array_equal(image.pixels[..., 0], pixels)
    assert not image.lossy


def test_every_decoder_is_named_and_free(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {}
    as_array = Decoder.as_array

    def spy(self: Decoder, src: Any, **options: Any) -> Any:
        used[str(self.UID)] = options["decoding_plugin"]
        return as_array(self, src, **options)

    monkeypatch.setattr(Decoder, "as_array", spy)
    for name in packaged_in_scope():
        decode_dicom(packaged(name))
    assert len(used) >= 10
    for syntax, plugin in used.items():
        assert plugin == SYNTAXES[syntax].plugin
        assert bool(plugin) == uid.UID(syntax).is_encapsulated
        if "JPEG 2000" not in uid.UID(syntax).name:
            assert plugin != "pylibjpeg", "the GPL plug-in would answer to this name"


@pytest.mark.parametrize("syntax", [uid.MPEG2MPML, uid.JPEGLossless[:-1] + "5", "1.2.3.4.5"])
def test_other_syntaxes_are_refused(syntax: str) -> None:
    data = file_of(dataset_of(grey())).replace(
        uid.ExplicitVRLittleEndian.encode() + b"\0", syntax.encode().ljust(20, b"\0")[:20]
    )
    assert reason_of(data) == "unsupported_transfer_syntax"


# Values


def test_ct_maps_hounsfield_units_onto_the_unit_scale() -> None:
    image = decode_dicom(file_of(dataset_of(grey(), RescaleSlope=2, RescaleIntercept=-1024)))
    assert image.values.unit == "HU"
    stored = (np.array([-1024.0, 3071.0]) + 1024) / 2
    np.testing.assert_allclose(stored * image.values.scale + image.values.offset, [0, 1], atol=1e-12)
    np.testing.assert_allclose(image.values.real_per_unit, 4095)


@pytest.mark.parametrize(
    ("attributes", "dtype", "unit"),
    [
        ({}, "int16", "stored value"),
        ({"RescaleSlope": 1, "RescaleIntercept": 0}, "uint8", "rescaled value"),  # cannot hold air: no HU
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}, "uint16", "HU"),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "US"}, "uint16", "rescaled value"),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "Z_EFF"}, "uint16", "Z_EFF"),
        ({"RescaleSlope": 3, "RescaleIntercept": 0, "Modality": "PT", "Units": "BQML"}, "int16", "BQML"),
        (
            {"RescaleSlope": 3, "RescaleIntercept": 0, "Modality": "MR", "RescaleType": "a\r\nb"},
            "int16",
            "rescaled value",
        ),
    ],
)
def test_unit_is_named_by_the_header(attributes: dict[str, Any], dtype: str, unit: str) -> None:
    pixels = grey(dtype=dtype, low=0, high=250)
    assert decode_dicom(file_of(dataset_of(pixels, **attributes))).values.unit == unit


bits = st.integers(2, 16)


@settings(max_examples=60, deadline=None)
@given(
    stored=bits,
    signed=st.booleans(),
    inverted=st.booleans(),
    slope=st.floats(0.01, 100),
    intercept=st.floats(-5e3, 5e3),
)
def test_value_map_is_fixed_by_depth_and_sign(
    stored: int, signed: bool, inverted: bool, slope: float, intercept: float
) -> None:
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    pixels = np.array([[low, high], [0, high // 2]], f"{'i' if signed else 'u'}{1 if stored <= 8 else 2}")
    dataset = dataset_of(pixels, Modality="MR", BitsStored=stored)
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.6f}", f"{intercept:.4f}"
    image = decode_dicom(file_of(dataset))
    np.testing.assert_array_equal(image.pixels[0, ..., 0], pixels)
    assert (image.minimum, image.maximum) == (low, high)
    values = image.values
    unit = np.array([0, high]) * values.scale + values.offset
    np.testing.assert_allclose(unit, [1, 0] if inverted else [0, 1], atol=1e-12)
    assert (values.scale < 0) == inverted
    expected = apply_rescale(pixels, dataset)
    np.testing.assert_allclose(pixels * values.slope + values.intercept, expected, rtol=1e-9, atol=1e-9)


def test_monochrome1_keeps_its_stored_sense() -> None:
    pixels = grey(dtype="uint16", low=0, high=1024)
    image = decode_dicom(file_of(dataset_of(pixels, BitsStored=10, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(image.pixels[0, ..., 0], pixels)
    assert image.values.scale < 0


def test_modality_lut_is_left_for_after_the_filter() -> None:
    data = packaged("CT_small.dcm")
    dataset = read(data)
    lut = dataset_of(grey())
    del lut.PixelData
    dataset.ModalityLUTSequence = [lut]
    assert decode_dicom(file_of(dataset)).values.unit == "stored value"


@pytest.mark.parametrize("slope", ["0", "nan", "inf"])
def test_rescale_without_inverse_is_refused(slope: str) -> None:
    data = file_of(dataset_of(grey(), RescaleSlope="7.5", RescaleIntercept="0")).replace(
        b"7.5 ", slope.ljust(4).encode()
    )
    assert reason_of(data) == "invalid_dicom"


def test_frames_with_one_rescale_share_it() -> None:
    image = decode_dicom(file_of(enhanced()))
    assert (image.frames, image.values.slope, image.values.intercept) == (2, 2.0, 5.0)
    assert image.spacing_mm == (0.5, 0.75)


def test_frames_with_different_rescale_are_refused() -> None:
    assert reason_of(file_of(enhanced(slopes=(2.0, 3.0)))) == "varying_rescale"


# Bits and padding


def test_bits_above_bits_stored_are_no_part_of_the_value() -> None:
    values = grey(dtype="int16", low=-2048, high=2048)
    raw = (values & 0x0FFF).astype(np.uint16) | 0x5000
    dataset = dataset_of(raw.view(np.int16), BitsStored=12)
    np.testing.assert_array_equal(decode_dicom(file_of(dataset)).pixels[0, ..., 0], values)


def test_overlays_in_unused_bits_become_overlay_data() -> None:
    values = grey(5, 7, dtype="uint16", low=0, high=4096)
    plane = np.random.default_rng(1).integers(0, 2, values.shape).astype(np.uint16)
    dataset = dataset_of(values | plane << 13, BitsStored=12)
    for element, vr, value in [(0x10, "US", 5), (0x11, "US", 7), (0x40, "CS", "G"), (0x50, "SS", [1, 1])]:
        dataset.add_new((0x6000, element), vr, value)
    dataset.add_new((0x6000, 0x100), "US", 16)
    dataset.add_new((0x6000, 0x102), "US", 13)
    image = decode_dicom(file_of(dataset))
    np.testing.assert_array_equal(image.pixels[0, ..., 0], values)
    np.testing.assert_array_equal(image.source.overlay_array(0x6000), plane)


def test_padding_is_a_value_or_a_range() -> None:
    pixels = grey(low=0, high=1000)
    pixels[0, :3] = [-2000, -1999, -1990]
    single = decode_dicom(file_of(dataset_of(pixels, PixelPaddingValue=-2000)))
    ranged = decode_dicom(file_of(dataset_of(pixels, PixelPaddingValue=-1990, PixelPaddingRangeLimit=-2000)))
    assert single.padding is not None
    assert ranged.padding is not None
    np.testing.assert_array_equal(single.padding[0], pixels == -2000)
    np.testing.assert_array_equal(ranged.padding[0], pixels < -1000)


def test_padding_written_as_unsigned_is_recognised() -> None:
    pixels = grey(low=0, high=1000)
    pixels[2, 2] = -2000
    dataset = dataset_of(pixels)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    image = decode_dicom(file_of(dataset))
    assert image.padding is not None
    assert image.padding.sum() == 1


def test_padding_outside_the_stored_bits_keeps_its_value() -> None:
    pixels = grey(dtype="uint16", low=0, high=4096)
    pixels[1, 1] = 63536
    image = decode_dicom(file_of(dataset_of(pixels, BitsStored=12, PixelPaddingValue=63536)))
    np.testing.assert_array_equal(image.pixels[0, ..., 0], pixels)
    assert image.padding is not None
    assert image.padding.sum() == 1


def test_no_padding_where_none_is_declared_or_used() -> None:
    assert decode_dicom(file_of(dataset_of(grey()))).padding is None
    assert decode_dicom(file_of(dataset_of(grey(low=0), PixelPaddingValue=-2000))).padding is None


# Lossy flags


@pytest.mark.parametrize(
    ("name", "lossy"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", True),
        ("693_J2KI.dcm", True),
        ("MR_small_jp2klossless.dcm", False),
        ("SC_rgb_jpeg_dcmd.dcm", False),
        ("SC_ybr_full_422_uncompressed.dcm", True),  # by its flag alone
    ],
)
def test_lossy_by_flag_or_by_syntax(name: str, lossy: bool) -> None:
    assert decode_dicom(packaged(name)).lossy is lossy


def test_reversible_jpeg2000_is_not_called_lossy() -> None:
    def encode(plane: Any) -> bytes:
        return imagecodecs.jpeg2k_encode(plane, codecformat="j2k", reversible=True)

    pixels = grey(32, 32, "uint16", 0, 4096)
    assert not decode_dicom(compressed(pixels, encode, uid.JPEG2000)).lossy
    image = decode_dicom(
        compressed(pixels, lambda p: imagecodecs.jpeg2k_encode(p, 40, codecformat="j2k"), uid.JPEG2000)
    )
    assert image.lossy
    assert image.source.LossyImageCompression == "01"
    assert image.source.LossyImageCompressionMethod == "ISO_15444_1"
    assert image.source.LossyImageCompressionRatio > 0


# Limits and damage


@pytest.mark.parametrize("limits", [Limits(bytes=100), Limits(pixels=47), Limits(frames=1)])
def test_limits_are_judged_from_the_header(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "as_array", lambda *a, **k: pytest.fail("decoded before the limits were checked"))
    assert reason_of(file_of(dataset_of(np.stack([grey(), grey()]))), limits) == "too_large"


def test_a_deflated_bomb_is_not_inflated() -> None:
    name = "image_dfl.dcm"
    image = decode_dicom(packaged(name))
    assert image.pixels.shape == (1, 512, 512, 1)
    assert reason_of(packaged(name), Limits(bytes=100_000)) == "too_large"
    start = packaged(name).index(uid.DeflatedExplicitVRLittleEndian.encode()) + len(uid.DeflatedExplicitVRLittleEndian)
    head = bytearray(packaged(name)[:start])
    bomb = deflated(bytes(head), bytes(200_000_000))
    assert len(bomb) < 300_000
    assert reason_of(bomb, Limits(bytes=1_000_000)) == "too_large"
    assert reason_of(packaged(name)[:-50]) == "truncated"


@pytest.mark.parametrize("rows", [5, 7, 60_000])
def test_a_frame_that_contradicts_the_header_never_reaches_its_decoder(rows: int) -> None:
    for syntax, encode in ((uid.JPEGLossless, lossless_jpeg), (uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode)):
        data = compressed(grey(dtype="uint16", low=0), encode, syntax, BitsStored=12, Rows=rows)
        assert reason_of(data) == "corrupt"


def test_missing_frames_are_found() -> None:
    pixels = grey(dtype="uint16", low=0)
    assert (
        reason_of(compressed(pixels, lossless_jpeg, uid.JPEGLossless, BitsStored=12, NumberOfFrames=2)) == "truncated"
    )
    assert reason_of(file_of(dataset_of(pixels, NumberOfFrames=2))) == "truncated"


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jp2klossless.dcm"]
)
def test_a_truncated_file_never_gives_an_image(name: str) -> None:
    data = packaged(name)
    whole = decode_dicom(data).pixels
    for end in range(0, len(data) - 1, max(1, len(data) // 150)):
        try:
            image = decode_dicom(data[:end])
        except ImageError:
            continue
        np.testing.assert_array_equal(image.pixels, whole)  # only what follows the pixels was cut


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "invalid_dicom"),
        (b"this is a text, saved as scan.dcm\n" * 40, "invalid_dicom"),
        (bytes(range(256)) * 20, "invalid_dicom"),
        (b"\0" * 128 + b"DICM", "invalid_dicom"),
        (b"\0" * 128 + b"DICM" + bytes(range(256)) * 20, "invalid_dicom"),
    ],
)
def test_what_is_no_dicom_is_refused(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SeriesInstanceUID": ""}, "invalid_dicom"),
        ({"BitsAllocated": 32}, "unsupported_pixels"),
        ({"HighBit": 14}, "unsupported_pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"PixelPresentation": "COLOR"}, "palette"),
        ({"PhotometricInterpretation": "CMYK"}, "unsupported_pixels"),
        ({"PhotometricInterpretation": "RGB"}, "invalid_dicom"),
        ({"SOPClassUID": uid.SegmentationStorage}, "unsupported_pixels"),
        ({"SOPClassUID": uid.VLWholeSlideMicroscopyImageStorage}, "whole_slide"),
        ({"DimensionOrganizationType": "TILED_FULL"}, "whole_slide"),
        ({"SOPClassUID": uid.BasicTextSRStorage}, "no_pixel_data"),
        ({"PixelData": b""}, "truncated"),
        ({"Rows": 0}, "invalid_dicom"),
        ({"RescaleSlope": 2}, "invalid_dicom"),  # without an intercept
        ({"PixelRepresentation": 2}, "unsupported_pixels"),
    ],
)
def test_out_of_scope_objects_say_why(change: dict[str, Any], reason: str) -> None:
    assert reason_of(file_of(dataset_of(grey(), **change))) == reason


def test_ybr_of_16_bits_and_contradictory_functional_groups_are_refused() -> None:
    colour = np.zeros((4, 4, 3), np.uint16)
    assert reason_of(file_of(dataset_of(colour, PhotometricInterpretation="YBR_FULL"))) == "unsupported_pixels"
    groups = enhanced()
    groups.PerFrameFunctionalGroupsSequence = groups.PerFrameFunctionalGroupsSequence[:1]
    assert reason_of(file_of(groups)) == "invalid_dicom"


def test_an_image_without_pixels_is_truncated_and_a_report_has_none() -> None:
    dataset = dataset_of(grey())
    del dataset.PixelData
    assert reason_of(file_of(dataset)) == "truncated"
    assert reason_of(packaged("test-SR.dcm")) == "no_pixel_data"


def test_messages_and_logs_hold_no_patient_data(caplog: pytest.LogCaptureFixture) -> None:
    dataset = dataset_of(grey(), PatientName="Secret^Name", NumberOfFrames=1)
    data = file_of(dataset).replace(b"IS\x02\x001 ", b"IS\x02\x00S^")
    with caplog.at_level(logging.DEBUG), pytest.raises(ImageError) as caught:
        decode_dicom(data)
    assert "S^" not in str(caught.value)
    assert "Secret" not in caplog.text
    assert caught.value.__cause__ is None


def test_threads_decode_without_letting_warnings_through() -> None:
    """badly padded data make pydicom warn; warnings are errors in these tests, in threads too."""
    data, failures = packaged("MR_small_padded.dcm"), []

    def work() -> None:
        try:
            for _ in range(20):
                decode_dicom(data)
        except ImageError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
