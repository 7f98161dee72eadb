"""Real pixels under constructed headers, for the SOP classes of which no file is at hand.

Headers hold what the class must have (PS3.3 annex A), as far as the validator knows it, and what the
writer has to treat: spacing at the detector, shutters, padding, functional groups, a slope per slice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from models.imaging.dicom import decode_dicom
from tests.dicom_objects import dataset_of, file_of, geometry

Array = np.ndarray[Any, Any]

_PATIENT = {
    "PatientName": "",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "StudyTime": "101112",
    "StudyID": "1",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "Manufacturer": "Constructed",
    "ContentDate": "20200102",
    "ContentTime": "101112",
    "AcquisitionDate": "20200102",
    "AcquisitionTime": "101112",
    "AcquisitionDateTime": "20200102101112",
    "SeriesDescription": "constructed",
    "BurnedInAnnotation": "NO",
    "Laterality": "",
    "PositionReferenceIndicator": "",
    "LossyImageCompression": "00",
}


def item(**attributes: Any) -> Dataset:
    """One item of a sequence."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def constructed(folder: Path) -> dict[str, bytes]:
    """Name -> file, of pixels from `folder`, the shared DICOM files; each with UIDs of its own."""

    def pixels(name: str) -> Array:
        return decode_dicom((folder / f"{name}.dcm").read_bytes()).pixels[0, :, :, 0]

    made: dict[str, Callable[[], Dataset]] = {
        "DX": lambda: _dx(pixels("CR_RG3_J2KI")[300:900, 300:1000], uid.DigitalXRayImageStorageForPresentation, "DX"),
        "DX-processing": lambda: _dx(pixels("CR_RG3_J2KI")[:400, :400], uid.DigitalXRayImageStorageForProcessing, "DX"),
        "MG": lambda: _mg(pixels("CR_RG3_J2KI")[500:1300, 200:700]),
        "NM": lambda: _nm(pixels("NM_NM1_RLE")),
        "XA": lambda: _xa(pixels("XA_XA1_JLSN")[:512, :512]),
        "PT": lambda: _pt(pixels("PT_2"), 0.5),
        "PT-next": lambda: _pt(pixels("PT_2"), 0.7312),
        "US-multi": lambda: _us(pixels("US_JPGLosslessP14SV1_1s_1f_8b")[100:400, 200:600]),
        "enhanced-CT": lambda: _enhanced_ct(pixels("CT_693_J2KR")[100:400, 100:400]),
        "enhanced-MR": lambda: _enhanced_mr(pixels("MR_3")),
        "SC-multi": lambda: _screens(pixels("US_JPGLosslessP14SV1_1s_1f_8b")[:200, :300]),
    }
    files = {}
    for number, (name, make) in enumerate(made.items(), start=1):
        dataset = make()
        for level, keyword in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")):
            setattr(dataset, keyword, f"1.2.826.0.1.3680043.8.498.{number}.{level}")
        files[f"constructed {name}"] = file_of(dataset)
    return files


def _image(values: Array, sop_class: str, modality: str, **attributes: Any) -> Dataset:
    return dataset_of(values, SOPClassUID=sop_class, Modality=modality, **{**_PATIENT, **attributes})


def _projection(values: Array, sop_class: str, modality: str, **attributes: Any) -> Dataset:
    """A digital radiograph (A.26) with a shutter and padding beyond it."""
    values = values.copy()
    values[:, :40] = 0
    shown = "Presentation" in uid.UID(sop_class).name
    window = {"WindowCenter": 512, "WindowWidth": 1024} if shown else {}
    dataset = _image(
        values,
        sop_class,
        modality,
        BitsStored=10,
        ImageType=["ORIGINAL", "PRIMARY"],
        PresentationIntentType="FOR PRESENTATION" if shown else "FOR PROCESSING",
        PixelPaddingValue=0,
        ImagerPixelSpacing=[0.15, 0.15],
        ShutterShape="RECTANGULAR",
        ShutterLeftVerticalEdge=41,
        ShutterRightVerticalEdge=values.shape[1],
        ShutterUpperHorizontalEdge=1,
        ShutterLowerHorizontalEdge=values.shape[0],
        PixelIntensityRelationship="LOG",
        PixelIntensityRelationshipSign=-1,
        RescaleIntercept=0,
        RescaleSlope=1,
        RescaleType="US",
        PresentationLUTShape="IDENTITY",
        PatientOrientation=["L", "F"],
        AnatomicRegionSequence=[code("51185008", "Chest")],
        AcquisitionContextSequence=[],
        ViewCodeSequence=[code("399348003", "antero-posterior")],
        DetectorType="DIRECT",
        **window,
        **attributes,
    )
    del dataset.Laterality
    return dataset


def _dx(values: Array, sop_class: str, modality: str) -> Dataset:
    return _projection(
        values,
        sop_class,
        modality,
        ImageLaterality="U",
        PositionerType="",
        DetectorElementSpacing=[0.15, 0.15],
        FieldOfViewOrigin=[10, 20],
        FieldOfViewRotation="0",
        FieldOfViewHorizontalFlip="NO",
    )


def _mg(values: Array) -> Dataset:
    dataset = _projection(values, uid.DigitalMammographyXRayImageStorageForPresentation, "MG")
    dataset.ImageLaterality, dataset.OrganExposed, dataset.PositionerType = "L", "BREAST", "MAMMOGRAPHIC"
    dataset.AnatomicRegionSequence = [code("76752008", "Breast")]
    dataset.ViewCodeSequence = [code("399162004", "cranio-caudal")]
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dataset.BreastImplantPresent, dataset.PartialView = "NO", "NO"
    return dataset


def _nm(values: Array) -> Dataset:
    """Four static views of a gamma camera (A.5), which differ in nothing but their detector."""
    frames = np.stack([values[n * 256 : (n + 1) * 256] for n in range(4)]).astype(np.uint16)
    dataset = _image(frames, uid.NuclearMedicineImageStorage, "NM", PixelSpacing=[2.4, 2.4])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"]
    dataset.FrameIncrementPointer = [0x00540010, 0x00540020]
    dataset.EnergyWindowVector, dataset.NumberOfEnergyWindows = [1] * 4, 1
    dataset.DetectorVector, dataset.NumberOfDetectors = [1, 2, 3, 4], 4
    dataset.CountsAccumulated, dataset.ActualFrameDuration = int(frames.sum()), 1000
    dataset.EnergyWindowInformationSequence = [
        item(
            EnergyWindowName="Tc99m",
            EnergyWindowRangeSequence=[item(EnergyWindowLowerLimit=126, EnergyWindowUpperLimit=154)],
        )
    ]
    dataset.RadiopharmaceuticalInformationSequence = []
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    dataset.DetectorInformationSequence = [item(CollimatorType="PARA", FieldOfViewShape="", **place) for _ in range(4)]
    dataset.PatientOrientationCodeSequence, dataset.PatientGantryRelationshipCodeSequence = [], []
    return dataset


def _xa(values: Array) -> Dataset:
    """Two frames of an angiogram (A.14), one of them the mask of the other, with a sub-pixel shift."""
    dataset = _image(np.stack([values, np.roll(values, 2, 1)]), uid.XRayAngiographicImageStorage, "XA", BitsStored=10)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
    dataset.ImagerPixelSpacing, dataset.FrameIncrementPointer, dataset.FrameTime = [0.2, 0.2], 0x00181063, 66.7
    dataset.PixelIntensityRelationship, dataset.RadiationSetting = "LIN", "GR"
    dataset.KVP, dataset.XRayTubeCurrent, dataset.ExposureTime, dataset.PatientOrientation = 80, 400, 5, ["L", "F"]
    dataset.PositionerMotion, dataset.PositionerPrimaryAngle, dataset.PositionerSecondaryAngle = "STATIC", 0, 0
    dataset.MaskSubtractionSequence = [item(MaskOperation="AVG_SUB", MaskFrameNumbers=1, MaskSubPixelShift=[0.5, -1])]
    dataset.RecommendedViewingMode = "SUB"
    dataset.CollimatorShape = "CIRCULAR"
    dataset.CenterOfCircularCollimator, dataset.RadiusOfCircularCollimator = [256, 256], 250
    return dataset


def _pt(values: Array, slope: float) -> Dataset:
    """A slice with a slope of its own (C.8.9.4)."""
    dataset = _image(values, uid.PositronEmissionTomographyImageStorage, "PT", **geometry(), AcquisitionNumber=1)
    dataset.ImageType, dataset.Units, dataset.CountsSource = ["ORIGINAL", "PRIMARY"], "BQML", "EMISSION"
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0
    dataset.SeriesType, dataset.NumberOfSlices = ["STATIC", "IMAGE"], 2
    dataset.DecayCorrection, dataset.CorrectedImage, dataset.DecayFactor = "START", ["DECY", "ATTN"], 1.1
    dataset.SeriesDate, dataset.SeriesTime, dataset.CollimatorType = "20200102", "101112", "NONE"
    dataset.FrameReferenceTime, dataset.ImageIndex, dataset.ActualFrameDuration = 0, 1, 120000
    dataset.RadiopharmaceuticalInformationSequence, dataset.PatientOrientationCodeSequence = [], []
    dataset.PatientGantryRelationshipCodeSequence = []
    return dataset


def _us(values: Array) -> Dataset:
    """Three frames with a calibrated region (A.7)."""
    dataset = _image(np.stack([values] * 3), uid.UltrasoundMultiFrameImageStorage, "US")
    dataset.ImageType, dataset.PatientOrientation = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"], ""
    dataset.FrameIncrementPointer, dataset.FrameTime = 0x00181063, 33.3
    rows, columns = values.shape
    region = item(
        RegionSpatialFormat=1,
        RegionDataType=1,
        RegionFlags=0,
        RegionLocationMinX0=10,
        RegionLocationMinY0=20,
        RegionLocationMaxX1=columns - 1,
        RegionLocationMaxY1=rows - 1,
        PhysicalUnitsXDirection=3,
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=0.02,
        PhysicalDeltaY=0.03,
    )
    dataset.SequenceOfUltrasoundRegions = [region]
    return dataset


def _screens(values: Array) -> Dataset:
    dataset = _image(np.stack([values] * 2), uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage, "OT")
    dataset.ImageType, dataset.ConversionType, dataset.PatientOrientation = ["DERIVED", "SECONDARY"], "WSD", ""
    dataset.PresentationLUTShape, dataset.RescaleIntercept, dataset.RescaleSlope = "IDENTITY", 0, 1
    dataset.RescaleType, dataset.FrameIncrementPointer, dataset.FrameTime = "US", 0x00181063, 100
    return dataset


def _enhanced(values: Array, sop_class: str, modality: str, kind: str, frame_type: list[str]) -> Dataset:
    """Two frames with shared spacing and orientation, and a position of each (A.36, A.38)."""
    dataset = _image(
        np.stack([values, values[::-1]]),
        sop_class,
        modality,
        ImageType=frame_type,
        ContentQualification="PRODUCT",
        PresentationLUTShape="IDENTITY",
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
        PatientPosition="HFS",
        AcquisitionContextSequence=[],
        DeviceSerialNumber="1",
        ManufacturerModelName="Constructed",
        SoftwareVersions="1",
    )
    del dataset.Laterality
    dimension = "1.2.826.0.1.3680043.8.498.99"
    dataset.DimensionOrganizationSequence = [item(DimensionOrganizationUID=dimension)]
    dataset.DimensionIndexSequence = [
        item(
            DimensionOrganizationUID=dimension,
            DimensionIndexPointer=0x00209057,
            FunctionalGroupPointer=0x00209111,
        )
    ]
    plane = geometry()
    frame = item(FrameType=frame_type, PixelPresentation="MONOCHROME", VolumetricProperties="VOLUME")
    frame.VolumeBasedCalculationTechnique = "NONE"
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=plane["PixelSpacing"], SliceThickness=2.5)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=plane["ImageOrientationPatient"])],
            FrameVOILUTSequence=[item(WindowCenter=40, WindowWidth=400)],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0, RescaleType=kind)],
            FrameAnatomySequence=[item(FrameLaterality="U", AnatomicRegionSequence=[code("51185008", "Chest")])],
            **{f"{modality}ImageFrameTypeSequence": [frame]},
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = Sequence([_frame_group(number) for number in range(2)])
    return dataset


def _frame_group(number: int) -> Dataset:
    content = item(StackID="1", InStackPositionNumber=number + 1, DimensionIndexValues=[number + 1])
    content.FrameAcquisitionNumber, content.FrameAcquisitionDuration = 1, 100.0
    content.FrameReferenceDateTime = content.FrameAcquisitionDateTime = "20200102101112"
    return item(
        FrameContentSequence=[content],
        PlanePositionSequence=[item(ImagePositionPatient=[-100.25, 40.5, 12.125 + 2.5 * number])],
    )


def _enhanced_ct(values: Array) -> Dataset:
    kind = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset = _enhanced(values, uid.EnhancedCTImageStorage, "CT", "HU", kind)
    dataset.PixelPaddingValue = -2000
    return dataset


def _enhanced_mr(values: Array) -> Dataset:
    kind = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    dataset = _enhanced(values, uid.EnhancedMRImageStorage, "MR", "US", kind)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.ComplexImageComponent, dataset.AcquisitionContrast = "MAGNITUDE", "T1"
    dataset.PulseSequenceName, dataset.MagneticFieldStrength, dataset.ResonantNucleus = "ge", 1.5, "1H"
    dataset.KSpaceFiltering, dataset.ApplicableSafetyStandardAgency = "NONE", "IEC"
    return dataset
