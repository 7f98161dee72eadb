"""What a site decides about derived objects, and what a route takes of an archive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset

from models.errors import OptionError
from models.imaging.dicom import decode_dicom, derived_uid, encode_dicom, is_ours, kind_of
from models.imaging.policy import Policy
from models.imaging.values import from_unit, to_unit
from tests.dicom_objects import DENOISE, dataset_of, enhanced, file_of, grey, packaged, read, superresolve

OTHERS = [
    Policy(image_type="PRIMARY"),
    Policy(number_offset=500),
    Policy(qualification="SERVICE"),
    Policy(private_creators=("VENDOR",)),
]


def derive(data: bytes, policy: Policy) -> Dataset:
    return read(encode_dicom(decode_dicom(data), DENOISE, policy=policy))


def test_labels_are_the_sites() -> None:
    derived = derive(packaged("CT_small.dcm"), Policy("PRIMARY", 500, "PRODUCT"))
    assert list(derived.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert derived.SeriesNumber == read(packaged("CT_small.dcm")).SeriesNumber + 500
    assert derived.ContentQualification == "PRODUCT"


def test_an_enhanced_object_is_primary_whatever_the_policy_and_the_source_say() -> None:
    source = file_of(enhanced(ImageType=["ORIGINAL", "SECONDARY", "M", "NONE"]))
    assert list(derive(source, Policy()).ImageType) == ["DERIVED", "PRIMARY", "M", "NONE"]


@pytest.mark.parametrize("policy", OTHERS)
def test_another_object_has_other_uids(policy: Policy) -> None:
    """An archive keeps the first object of a UID: under the same one the change would be lost."""
    before, after = (derive(packaged("CT_small.dcm"), p) for p in (Policy(), policy))
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert after.SeriesInstanceUID != before.SeriesInstanceUID
    assert after.SOPInstanceUID == derived_uid(read(packaged("CT_small.dcm")).SOPInstanceUID, DENOISE, policy)


def test_equal_policies_give_equal_uids() -> None:
    one, other = Policy(private_creators=("B", "A")), Policy(private_creators=("A", "B", "A"))
    assert derived_uid("1.2.3", DENOISE, one) == derived_uid("1.2.3", DENOISE, other)
    assert derived_uid("1.2.3", DENOISE, Policy()) == derived_uid("1.2.3", DENOISE)


def test_tiles_count_where_they_are_told() -> None:
    tiled = replace(DENOISE, tiles="128x128 at 0,64 x 0")
    assert derived_uid("1.2.3", tiled) != derived_uid("1.2.3", DENOISE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_type": "TERTIARY"},
        {"number_offset": -1},
        {"number_offset": 2**31},
        {"qualification": "GOOD"},
        {"private_creators": (" VENDOR",)},
        {"private_creators": ("",)},
    ],
)
def test_what_dicom_does_not_know_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Policy(**wrong)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_private_blocks_stay_by_their_creator(syntax: str) -> None:
    dataset = dataset_of(grey())
    inner = Dataset()
    inner.CodeMeaning = "kept"
    for level in (inner, dataset):
        level.add_new((0x0009, 0x0010), "LO", "OTHER")
        level.add_new((0x0009, 0x1002), "LO", "other text")
        level.add_new((0x0009, 0x0011), "LO", "VENDOR ")
        level.add_new((0x0009, 0x1102), "LO", "vendor text")
        level.add_new((0x0009, 0x1203), "LO", "nobody's")
    dataset.add_new((0x0009, 0x1104), "SQ", [inner])
    dataset.ProcedureCodeSequence = [inner]
    derived = derive(file_of(dataset, syntax), Policy(private_creators=("VENDOR",)))
    levels = [derived, derived.ProcedureCodeSequence[0]]
    if syntax == uid.ExplicitVRLittleEndian:  # the other does not say that it is a sequence
        levels.append(derived[0x0009, 0x1104].value[0])
    for level in levels:
        private = [element.tag for element in level if element.tag.is_private and element.tag != 0x00091104]
        assert private == [0x00090011, 0x00091102]
    assert not [element for element in derive(file_of(dataset, syntax), Policy()).iterall() if element.tag.is_private]


# Kinds

CT = {"SOPClassUID": uid.CTImageStorage, "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({}, "image"),
        ({"Modality": "MR"}, "image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER\\CT_SOM5 TOP"}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, "derived"),
        ({"ImageType": "DERIVED\\SECONDARY\\SCREEN SAVE"}, "screen"),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, "screen"),
        ({"SOPClassUID": uid.MultiFrameTrueColorSecondaryCaptureImageStorage}, "screen"),
        ({"SOPClassUID": uid.XRayRadiationDoseSRStorage, "Modality": "SR"}, "report"),
        ({"SOPClassUID": uid.GrayscaleSoftcopyPresentationStateStorage}, "report"),
        ({"SOPClassUID": uid.EncapsulatedPDFStorage}, "report"),
        ({"Modality": "PR", "SOPClassUID": None, "ImageType": None}, "report"),
        ({"SOPClassUID": uid.SegmentationStorage}, "unsupported"),
        ({"Modality": "RTDOSE"}, "unsupported"),
        ({"SOPClassUID": "1.2.3.4.5"}, "image"),
        ({"SeriesDescription": "chest [superresolve x2]"}, "ours"),
        ({"SeriesDescription": "chest [denoise] "}, "ours"),
    ],
)
def test_a_route_takes_plain_images(header: dict[str, Any], kind: str) -> None:
    """From the few attributes of a query, as lists or as text, and from a dataset."""
    told = {**CT, **header}
    assert (kind_of(told).name, kind_of(told).routed) == (kind, kind == "image")
    dataset = Dataset()
    for keyword, value in told.items():
        setattr(dataset, keyword, value.split("\\") if isinstance(value, str) and "\\" in value else value)
    assert kind_of(dataset) == kind_of(told)


@pytest.mark.parametrize("digest", ["0" * 64, "abc" * 21 + "d"])
def test_what_any_model_made_is_ours(digest: str) -> None:
    """Also of models that are long gone, under another label, and after a second step by others."""
    derivation = replace(DENOISE, digest=digest, model="forgotten")
    derived = read(encode_dicom(decode_dicom(packaged("CT_small.dcm")), derivation))
    derived.SeriesDescription = "renamed"
    derived.ContributingEquipmentSequence = [*derived.ContributingEquipmentSequence, Dataset()]
    assert is_ours(derived)
    assert kind_of(derived).name == "ours"
    assert is_ours(Dataset.from_json(derived.to_json()))


def test_what_others_made_is_not_ours() -> None:
    derived = read(encode_dicom(decode_dicom(packaged("CT_small.dcm")), DENOISE))
    assert not is_ours(read(packaged("CT_small.dcm")))
    item = derived.ContributingEquipmentSequence[0]
    item.DeviceUID = "2.25.1"
    assert not is_ours(derived)
    del item.DeviceUID
    assert not is_ours(derived)


# Values


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    scale=st.sampled_from([1, 2, 4]),
    slope=st.floats(1e-4, 1e3),
    intercept=st.floats(-2000, 2000),
    padded=st.booleans(),
    seed=st.integers(0, 999),
)
def test_values_stay_in_their_range_and_padding_is_left_alone(
    bits: int, signed: bool, scale: int, slope: float, intercept: float, padded: bool, seed: int
) -> None:
    """Whatever a network answers; and each PET slice has its own slope, which stays to the letter."""
    random = np.random.default_rng(seed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    pixels = random.integers(low, high + 1, (5, 7)).astype("int16" if signed else "uint16")
    attributes: dict[str, Any] = {"PixelPaddingValue": int(low)} if padded else {}
    dataset = dataset_of(pixels, SOPClassUID=uid.PositronEmissionTomographyImageStorage, BitsStored=bits, **attributes)
    dataset.Modality, dataset.Units = "PT", "BQML"
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.6e}", f"{intercept:.6e}"
    image = decode_dicom(file_of(dataset))
    unit = to_unit(image).repeat(scale, 2).repeat(scale, 3)
    answer = unit + random.normal(0, 2, unit.shape).astype(np.float32)
    restored, _ = from_unit(answer, image, scale)
    derived = read(encode_dicom(restored, DENOISE if scale == 1 else superresolve(scale)))
    after = derived.pixel_array
    assert low <= after.min() <= after.max() <= high
    assert (derived.RescaleSlope, derived.RescaleIntercept) == (dataset.RescaleSlope, dataset.RescaleIntercept)
    mask = (pixels == low).repeat(scale, 0).repeat(scale, 1) if padded else np.zeros(after.shape, bool)
    assert (after[mask] == low).all()
    assert not padded or not (after[~mask] == low).any()
    expected = np.clip(np.rint((answer[0, 0].astype(float) - image.values.offset) / image.values.scale), low, high)
    others = ~mask & (after != low + 1)  # beside the padding: moved there
    assert np.abs(after[others] - expected[others]).max(initial=0) <= 1
