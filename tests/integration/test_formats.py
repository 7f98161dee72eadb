"""Every format in and out, through decoding, workers and encoding."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest

from models.imaging.codec import MEDIA_TYPES, decode
from tests.integration.client import Client, dicom, npy
from tests.reference_images import LOSSLESS, REFERENCES, Reference

DICOMS = [
    "CT_small.dcm",  # signed 16 bit, rescaled to HU
    "MR_small.dcm",
    "MR_small_jp2klossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm",  # lossy
    "SC_rgb_small_odd.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
]


@pytest.mark.parametrize("reference", LOSSLESS, ids=str)
def test_strength_0_is_the_identity(client: Client, reference: Reference) -> None:
    answer = client.restore("/denoise?strength=0", reference.data)
    assert answer.format == reference.format
    assert answer.pixels.dtype == reference.pixels.dtype
    np.testing.assert_array_equal(answer.pixels, reference.pixels)


@pytest.mark.parametrize("name", [*DICOMS, "examples_ybr_color.dcm"])  # ultrasound, 30 frames
def test_strength_0_is_the_identity_for_dicom(client: Client, name: str) -> None:
    before = decode(dicom(name))
    answer = client.restore("/denoise?strength=0", dicom(name))
    assert answer.format == "dicom"
    np.testing.assert_array_equal(answer.pixels, before.pixels)


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_every_format_is_denoised_in_its_own(client: Client, reference: Reference) -> None:
    response = client.post("/denoise", reference.data)
    assert response.status_code == 200, response.text
    own = "png" if reference.format == "jpeg" else reference.format
    assert response.headers["Content-Type"] == MEDIA_TYPES[own]
    assert decode(response.content).pixels.shape == reference.pixels.shape


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_every_format_is_enlarged(client: Client, reference: Reference) -> None:
    frames, rows, columns, samples = reference.pixels.shape
    answer = client.restore("/superresolve?scale=2", reference.data)
    assert answer.pixels.shape == (frames, 2 * rows, 2 * columns, samples)


@pytest.mark.parametrize("name", DICOMS)
@pytest.mark.parametrize("route", ["/denoise", "/superresolve?scale=2"])
def test_dicom_gives_a_derived_object(client: Client, name: str, route: str) -> None:
    response = client.post(route, dicom(name))
    assert response.headers["Content-Type"] == "application/dicom", response.text
    source = pydicom.dcmread(io.BytesIO(dicom(name)))
    derived = pydicom.dcmread(io.BytesIO(response.content))
    assert derived.SOPClassUID == source.SOPClassUID
    assert derived.StudyInstanceUID == source.StudyInstanceUID
    assert derived.SOPInstanceUID != source.SOPInstanceUID
    assert derived.ImageType[0] == "DERIVED"
    assert derived.Rows == source.Rows * (2 if "scale" in route else 1)


@pytest.mark.parametrize("format", ["png", "tiff", "npy"])
def test_accept_chooses_the_format(client: Client, picture: bytes, format: str) -> None:
    own = client.restore("/denoise", picture)
    response = client.post("/denoise", picture, accept=MEDIA_TYPES[format])
    assert response.headers["Content-Type"] == MEDIA_TYPES[format]
    np.testing.assert_array_equal(decode(response.content).pixels, own.pixels)


def test_dicom_can_be_answered_as_tiff(client: Client) -> None:
    own = client.restore("/denoise", dicom("CT_small.dcm"))
    other = client.restore("/denoise", dicom("CT_small.dcm"), accept="image/tiff")
    assert other.format == "tiff"
    np.testing.assert_array_equal(other.pixels, own.pixels)


def test_sigma_of_ct_is_in_hu(client: Client) -> None:
    response = client.post("/denoise?sigma=25", dicom("CT_small.dcm"))
    assert response.headers["X-Noise-Unit"] == "HU"
    assert float(response.headers["X-Noise-Before"]) == pytest.approx(25, rel=1e-3)


def test_equal_planes_stay_equal(client: Client) -> None:
    grey = np.random.default_rng(8).integers(0, 256, (70, 90, 1), np.uint8)
    for options in ("", "?precision=exact", "?precision=fast"):
        colour = client.restore(f"/denoise{options}", npy(grey.repeat(3, -1))).pixels
        alone = client.restore(f"/denoise{options}", npy(grey[..., 0])).pixels
        assert (colour == colour[..., :1]).all()
        np.testing.assert_array_equal(colour[..., :1], alone)


def test_noise_goes_down_and_the_picture_stays(client: Client) -> None:
    clean = np.add.outer(np.linspace(0, 8000, 120), np.linspace(0, 8000, 100))
    noisy = (clean + np.random.default_rng(1).normal(5000, 300, clean.shape)).astype(np.uint16)
    response = client.post("/denoise", npy(noisy))
    restored = decode(response.content).pixels[0, :, :, 0]
    error = np.sqrt(np.mean((restored - clean - 5000) ** 2))
    assert error < 150
    assert float(response.headers["X-Noise-Before"]) == pytest.approx(300, rel=0.1)
    assert float(response.headers["X-Noise-After"]) < 100


def test_the_same_request_gives_the_same_bytes(client: Client) -> None:
    body = dicom("MR_small.dcm")
    first, *others = [client.post("/denoise", body).content for _ in range(3)]
    assert all(other == first for other in others)
