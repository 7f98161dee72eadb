"""Derived DICOM objects: pixels, identity, provenance, and what must not survive."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from models.errors import OptionError
from models.imaging.dicom import decode_dicom, encode_dicom
from models.imaging.dicom.identity import derived_uid, device_uid
from models.imaging.dicom.provenance import describe
from models.imaging.image import Derivation, Image, ValueMap
from models.imaging.values import from_unit, to_unit
from tests.dicom_objects import (
    DENOISE,
    dataset_of,
    enhanced,
    file_of,
    grey,
    packaged,
    packaged_in_scope,
    read,
    superresolve,
)


def derive(data: bytes, derivation: Derivation = DENOISE, now: datetime | None = None) -> Dataset:
    """The derived object of a file, its pixels unchanged (repeated under a larger scale)."""
    image = decode_dicom(data)
    return read(encode_dicom(enlarge(image, derivation.scale), derivation, now))


def enlarge(image: Image, scale: int) -> Image:
    padding = None if image.padding is None else image.padding.repeat(scale, 1).repeat(scale, 2)
    return image.with_pixels(image.pixels.repeat(scale, 1).repeat(scale, 2), scale, padding)


@pytest.mark.parametrize("name", packaged_in_scope())
def test_an_unchanged_image_comes_back_bit_for_bit(name: str) -> None:
    image = decode_dicom(packaged(name))
    unchanged, clipped = from_unit(to_unit(image), image)
    written = encode_dicom(unchanged, DENOISE)
    again = decode_dicom(written)
    assert clipped == 0
    np.testing.assert_array_equal(image.pixels, again.pixels)
    assert again.pixels.dtype == image.pixels.dtype
    assert (again.values, again.minimum, again.maximum) == (image.values, image.minimum, image.maximum)
    assert again.spacing_mm == image.spacing_mm
    assert again.lossy == image.lossy
    np.testing.assert_array_equal(image.padding, again.padding)
    assert encode_dicom(unchanged, DENOISE) == written
    assert again.source.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian


# Identity


def test_a_new_series_in_the_same_study() -> None:
    data = packaged("CT_small.dcm")
    source, derived = read(data), derive(data)
    for keyword in ("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate"):
        assert derived[keyword].value == source[keyword].value
    for keyword in ("InstanceNumber", "AcquisitionDate", "WindowCenter", "RescaleIntercept", "BitsStored"):
        assert derived.get(keyword) == source.get(keyword)
    assert derived.SOPInstanceUID != source.SOPInstanceUID
    assert derived.SeriesInstanceUID != source.SeriesInstanceUID
    assert derived.file_meta.MediaStorageSOPInstanceUID == derived.SOPInstanceUID
    assert derived.SeriesNumber == source.SeriesNumber + 9000
    assert derived.SeriesDescription.endswith("[denoise]")


def test_uids_are_those_of_a_name_based_uuid() -> None:
    identifier = derived_uid("1.2.3", DENOISE)
    assert identifier.startswith("2.25.")
    assert len(identifier) <= 44
    assert identifier.is_valid
    assert (int(identifier[5:]) >> 76) & 0xF == 5  # UUID version


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "other"},
        {"digest": "00"},
        {"options": {"strength": 0.5}},
        {"backend": "openvino"},
        {"precision": "bf16"},
        {"scale": 2},
    ],
)
def test_whatever_changes_pixels_changes_uids(change: dict[str, Any]) -> None:
    assert derived_uid("1.2.3", replace(DENOISE, **change)) != derived_uid("1.2.3", DENOISE)


def test_uids_do_not_depend_on_names_evidence_or_order() -> None:
    same = replace(DENOISE, model="renamed", evidence={}, options={"sigma": None, "strength": 1.0})
    assert derived_uid("1.2.3", same) == derived_uid("1.2.3", DENOISE)
    assert derived_uid("1.2.4", DENOISE) != derived_uid("1.2.3", DENOISE)


def test_slices_of_a_series_share_the_derived_series() -> None:
    first, second = (derive(file_of(dataset_of(grey(), SOPInstanceUID=f"1.2.3.4.{n}"))) for n in (1, 2))
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


@settings(max_examples=40, deadline=None)
@given(
    description=st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="\\"), max_size=64)
)
def test_series_description_is_marked_and_fits(description: str) -> None:
    derived = derive(file_of(dataset_of(grey(2, 2), SeriesDescription=description)))
    assert len(derived.SeriesDescription) <= 64
    assert derived.SeriesDescription.endswith("[denoise]")
    assert derived.SeriesDescription.startswith(description.strip()[:54].strip())


@pytest.mark.parametrize(("number", "expected"), [(7, 9007), (2**31 - 2, 9000)])
def test_series_number_stays_within_is(number: int, expected: int) -> None:
    assert derive(file_of(dataset_of(grey(), SeriesNumber=number))).SeriesNumber == expected


# Provenance


@pytest.mark.parametrize(("derivation", "code"), [(DENOISE, "113087"), (superresolve(2), "113085")])
def test_the_derivation_is_recorded(derivation: Derivation, code: str) -> None:
    data = packaged("CT_small.dcm")
    source, derived = read(data), derive(data, derivation)
    assert list(derived.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert [item.CodeValue for item in derived.DerivationCodeSequence] == [code]
    (reference,) = derived.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == source.SOPClassUID
    assert reference.SpatialLocationsPreserved == "YES"
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert derived.ContentQualification == "RESEARCH"
    assert derivation.digest in derived.DerivationDescription


def test_the_model_is_contributing_equipment_beside_the_scanner() -> None:
    dataset = dataset_of(grey(), Manufacturer="Scanner", ContributingEquipmentSequence=[Dataset()])
    derived = derive(file_of(dataset))
    assert derived.Manufacturer == "Scanner"
    _, ours = derived.ContributingEquipmentSequence
    assert ours.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert ours.DeviceUID == device_uid(DENOISE.digest)
    assert (ours.ManufacturerModelName, list(ours.SoftwareVersions)) == ("denoise", ["1.0", DENOISE.digest])
    assert ours.Manufacturer == "MedRestore"


def test_earlier_steps_are_kept() -> None:
    first = encode_dicom(decode_dicom(packaged("CT_small.dcm")), DENOISE)
    derived = derive(first, superresolve(2))
    assert [item.CodeValue for item in derived.DerivationCodeSequence] == ["113087", "113085"]
    assert len(derived.ContributingEquipmentSequence) == 2
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == read(first).SOPInstanceUID
    assert "denoise" in derived.DerivationDescription
    assert len(derived.DerivationDescription) <= 1024


def test_the_description_says_what_was_measured() -> None:
    text = describe(DENOISE)
    assert "strength 1" in text
    assert "sigma" not in text
    assert "noise before 21.5 HU, noise after 4.25 HU, clipped 3" in text
    assert len(describe(replace(DENOISE, evidence={"note": "x" * 3000}))) <= 1024
    assert describe(replace(DENOISE, evidence={"unit": "µSv", "noise_before": 1.0})).isascii()


@pytest.mark.parametrize(
    ("sop_class", "modality", "expected"),
    [
        (uid.MRImageStorage, "MR", "SECONDARY"),
        (uid.PositronEmissionTomographyImageStorage, "PT", "PRIMARY"),
        (uid.NuclearMedicineImageStorage, "NM", "PRIMARY"),
        (uid.EnhancedMRImageStorage, "MR", "PRIMARY"),
    ],
)
def test_image_type_follows_the_class(sop_class: str, modality: str, expected: str) -> None:
    derived = derive(file_of(dataset_of(grey(), SOPClassUID=sop_class, Modality=modality)))
    assert list(derived.ImageType[:2]) == ["DERIVED", expected]


def test_dates_of_study_and_acquisition_stay_and_creation_is_that_of_the_job() -> None:
    dataset = dataset_of(grey(), SeriesDate="20200103", SeriesTime="101010", AcquisitionDate="20200104")
    dataset.InstanceCreationDate = "20200105"
    silent, told = derive(file_of(dataset)), derive(file_of(dataset), now=datetime(2024, 5, 6, 7, 8, 9, 10))
    assert "InstanceCreationDate" not in silent
    assert silent.SeriesDate == "20200103"
    assert (told.InstanceCreationDate, told.InstanceCreationTime) == ("20240506", "070809.000010")
    assert (told.SeriesDate, told.StudyDate, told.AcquisitionDate) == ("20240506", "20200102", "20200104")
    assert told.ContributingEquipmentSequence[0].ContributionDateTime == "20240506070809.000010"
    assert silent.SOPInstanceUID == told.SOPInstanceUID


def test_pet_keeps_the_series_time_that_decay_is_corrected_to() -> None:
    dataset = dataset_of(grey(), Modality="PT", SeriesDate="20200103", SeriesTime="101010")
    derived = derive(file_of(dataset), now=datetime(2024, 5, 6))
    assert (derived.SeriesDate, derived.SeriesTime) == ("20200103", "101010")
    assert derived.InstanceCreationDate == "20240506"


def test_enhanced_objects_record_each_frame() -> None:
    data = file_of(enhanced(SourceImageSequence=[Dataset()], ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"]))
    source, derived = read(data), derive(data)
    assert list(derived.ImageType) == ["DERIVED", "PRIMARY", "M", "NONE"]
    assert "SourceImageSequence" not in derived
    assert "DerivationCodeSequence" not in derived
    (shared,) = derived.SharedFunctionalGroupsSequence
    assert list(shared.MRImageFrameTypeSequence[0].FrameType) == ["DERIVED", "PRIMARY", "M", "NONE"]
    for number, group in enumerate(derived.PerFrameFunctionalGroupsSequence, start=1):
        (item,) = group.DerivationImageSequence
        assert item.DerivationCodeSequence[0].CodeValue == "113087"
        assert item.SourceImageSequence[0].ReferencedFrameNumber == number
        assert item.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    (study,) = derived.SourceImageEvidenceSequence
    assert study.StudyInstanceUID == source.StudyInstanceUID
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    instance = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_each_study_is_evidence_once() -> None:
    first = encode_dicom(decode_dicom(file_of(enhanced())), DENOISE)
    derived = derive(first, superresolve(2))
    (study,) = derived.SourceImageEvidenceSequence
    expected = [read(file_of(enhanced())).SeriesInstanceUID, read(first).SeriesInstanceUID]
    assert [series.SeriesInstanceUID for series in study.ReferencedSeriesSequence] == expected


def test_a_shared_derivation_macro_moves_to_the_frames() -> None:
    dataset = enhanced()
    earlier = Dataset()
    earlier.DerivationDescription = "resampled"
    dataset.SharedFunctionalGroupsSequence[0].DerivationImageSequence = [earlier]
    derived = derive(file_of(dataset))
    assert "DerivationImageSequence" not in derived.SharedFunctionalGroupsSequence[0]
    for group in derived.PerFrameFunctionalGroupsSequence:
        assert group.DerivationImageSequence[0].DerivationDescription == "resampled"
        assert len(group.DerivationImageSequence) == 2


# What must not survive


def test_what_describes_the_old_pixels_is_removed_at_every_level() -> None:
    dataset = dataset_of(grey(), SmallestImagePixelValue=-1000, LargestImagePixelValue=3000)
    inner = Dataset()
    inner.add_new((0x0011, 0x0010), "LO", "VENDOR")
    inner.add_new((0x0011, 0x1001), "LO", "secret")
    inner.LargestImagePixelValue = 5
    inner.CodeValue = "kept"
    dataset.ProcedureCodeSequence = [inner]
    dataset.IconImageSequence, dataset.DigitalSignaturesSequence = [Dataset()], [Dataset()]
    dataset.add_new((0x0009, 0x0010), "LO", "VENDOR")
    dataset.add_new((0x0009, 0x1002), "SQ", Sequence([Dataset()]))
    derived = derive(file_of(dataset))
    assert not [element for element in derived.iterall() if element.tag.is_private]
    gone = ("SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence", "DigitalSignaturesSequence")
    assert not [keyword for keyword in gone if keyword in derived]
    assert "LargestImagePixelValue" not in derived.ProcedureCodeSequence[0]
    assert derived.ProcedureCodeSequence[0].CodeValue == "kept"


def test_the_source_is_left_alone() -> None:
    image = decode_dicom(packaged("CT_small.dcm"))
    before = image.source.to_json()
    encode_dicom(image, DENOISE)
    encode_dicom(enlarge(image, 2), superresolve(2))
    assert image.source.to_json() == before


def test_lossy_is_for_ever() -> None:
    derived = derive(packaged("SC_rgb_jpeg_dcmtk.dcm"))
    assert derived.LossyImageCompression == "01"
    again = derive(encode_dicom(decode_dicom(packaged("SC_rgb_jpeg_dcmtk.dcm")), DENOISE), superresolve(2))
    assert again.LossyImageCompression == "01"
    assert again.LossyImageCompressionMethod == "ISO_10918_1"


def test_colour_is_written_as_rgb_by_pixel() -> None:
    derived = derive(packaged("examples_ybr_color.dcm"))
    assert (derived.PhotometricInterpretation, derived.PlanarConfiguration) == ("RGB", 0)
    assert derived["PixelData"].VR == "OB"


def test_monochrome1_is_kept() -> None:
    pixels = grey(dtype="uint16", low=0, high=4096)
    data = file_of(dataset_of(pixels, BitsStored=12, PhotometricInterpretation="MONOCHROME1", Modality="CR"))
    derived = derive(data)
    assert derived.PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_array_equal(derived.pixel_array, pixels)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRBigEndian, uid.ImplicitVRLittleEndian])
def test_words_and_texts_survive_another_byte_order(syntax: str) -> None:
    dataset = dataset_of(grey(), PatientWeight="72.5")
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [2, 0, 16], "US"
    lut.add_new("LUTData", "OW", b"\x01\x02\x03\x04" if syntax == uid.ImplicitVRLittleEndian else b"\x02\x01\x04\x03")
    dataset.ModalityLUTSequence = [lut]
    if syntax == uid.ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    derived = derive(file_of(dataset, syntax))
    np.testing.assert_array_equal(derived.pixel_array, grey())
    assert derived.ModalityLUTSequence[0].LUTData in (b"\x01\x02\x03\x04", [0x0201, 0x0403])


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_malformed_number_is_carried_over_unread(syntax: str) -> None:
    data = file_of(dataset_of(grey(), PatientWeight="72.5"), syntax).replace(b"72.5", b"72,5")
    assert b"72,5" in encode_dicom(decode_dicom(data), DENOISE)


def test_pixels_that_landed_on_padding_are_moved_beside_it() -> None:
    pixels = grey(low=0, high=1000)
    pixels[0, 0] = -2000
    image = decode_dicom(file_of(dataset_of(pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900)))
    restored = image.pixels.copy()
    restored[0, 1, 1, 0], restored[0, 1, 2, 0] = -2000, -1900
    again = decode_dicom(encode_dicom(image.with_pixels(restored, padding=image.padding), DENOISE))
    assert again.pixels[0, 0, 0, 0] == -2000
    assert list(again.pixels[0, 1, 1:3, 0]) == [-1899, -1899]
    np.testing.assert_array_equal(image.padding, again.padding)


def test_padding_at_the_top_pushes_down() -> None:
    pixels = grey(dtype="uint8", low=0, high=200)
    image = decode_dicom(file_of(dataset_of(pixels, PixelPaddingValue=255)))
    restored = image.pixels.copy()
    restored[0, 0, 0, 0] = 255
    assert decode_dicom(encode_dicom(image.with_pixels(restored), DENOISE)).pixels[0, 0, 0, 0] == 254


def test_padding_over_the_whole_range_moves_nothing() -> None:
    pixels = grey(dtype="uint8", low=0, high=200)
    image = decode_dicom(file_of(dataset_of(pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=255)))
    np.testing.assert_array_equal(decode_dicom(encode_dicom(image, DENOISE)).pixels, image.pixels)


# Misuse


def test_only_dicom_becomes_dicom() -> None:
    image = Image(np.zeros((1, 2, 2, 1), np.uint8), ValueMap(1 / 255, 0), "png", 0, 255)
    with pytest.raises(OptionError, match="DICOM"):
        encode_dicom(image, DENOISE)


def test_pixels_must_agree_with_the_derivation() -> None:
    image = decode_dicom(packaged("CT_small.dcm"))
    for derivation in (superresolve(2), superresolve(4)):
        with pytest.raises(OptionError):
            encode_dicom(image, derivation)
    with pytest.raises(OptionError):
        encode_dicom(image.with_pixels(image.pixels.astype(np.uint8)), DENOISE)
