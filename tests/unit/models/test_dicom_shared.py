"""Every DICOM file of the shared data folder: back bit for bit, or refused for its reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.errors import ImageError
from models.imaging.dicom import decode_dicom, encode_dicom
from models.imaging.values import from_unit, to_unit
from tests.dicom_objects import DENOISE, SHARED_REFUSED

pytestmark = pytest.mark.shared

LOSSLESS_SIBLINGS = [
    ["CT_CT2_RLE.dcm", "CT_CT2_JLSL.dcm", "CT_CT2_JPLL.dcm"],
    ["MR_MR_small_implicit.dcm", "MR_MR_small_RLE.dcm", "MR_MR_small_bigendian.dcm", "MR_MR_small_jp2klossless.dcm"],
    ["NM_NM1_RLE.dcm", "NM_NM1_JLSL.dcm", "NM_JPEG-LL.dcm", "NM_nema-nm1_j2kr.dcm"],
]


@pytest.fixture(scope="module")
def files(shared: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((shared / "data" / "dicom").glob("*.dcm"))}


def test_every_file_comes_back_or_is_refused_for_its_reason(files: dict[str, bytes]) -> None:
    refused = {}
    for name, data in files.items():
        try:
            image = decode_dicom(data)
        except ImageError as error:
            refused[name] = error.reason
            continue
        unchanged, clipped = from_unit(to_unit(image), image)
        again = decode_dicom(encode_dicom(unchanged, DENOISE))
        assert clipped == 0, name
        np.testing.assert_array_equal(image.pixels, again.pixels, err_msg=name)
        np.testing.assert_array_equal(image.padding, again.padding, err_msg=name)
        assert (image.values, image.lossy) == (again.values, again.lossy), name
    assert refused == SHARED_REFUSED


@pytest.mark.parametrize("names", LOSSLESS_SIBLINGS)
def test_lossless_siblings_decode_equal(files: dict[str, bytes], names: list[str]) -> None:
    first, *others = (decode_dicom(files[name]) for name in names)
    for other in others:
        np.testing.assert_array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("CT_693_J2KR.dcm", "HU"),
        ("CT_CT2_RLE.dcm", "HU"),
        ("CT_CTImage_JPEGProcess1.dcm", "HU"),
        ("CT_ctbrain1.dcm", "stored value"),  # a colour drawing that calls itself CT
        ("MR_3.dcm", "normalized"),
        ("PT_2.dcm", "BQML"),
        ("OT_mlut_18.dcm", "stored value"),
    ],
)
def test_units_of_real_files(files: dict[str, bytes], name: str, unit: str) -> None:
    assert decode_dicom(files[name]).values.unit == unit


def test_air_and_water_of_a_real_ct_lie_where_they_should(files: dict[str, bytes]) -> None:
    image = decode_dicom(files["CT_693_J2KR.dcm"])
    unit = to_unit(image)
    assert image.padding is not None
    measured = unit[:, 0][~image.padding]
    assert measured.min() > -0.05
    assert np.mean(measured < 0.04) > 0.2  # below -860 HU: the air around the patient
    assert np.mean((measured > 0.23) & (measured < 0.28)) > 0.05  # -80 to 120 HU: soft tissue
