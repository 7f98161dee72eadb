"""Records in a dataset that it was derived, from what and by what (PS3.3 C.7.6.1, C.12.1, C.12.4)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from models.imaging.dicom.identity import derived_series_uid, derived_uid, device_uid
from models.imaging.dicom.tree import walk
from models.imaging.image import Derivation
from models.imaging.policy import LARGEST_IS, Policy

MANUFACTURER = "MedRestore"
_LONG_STRING, _SHORT_TEXT = 64, 1024  # characters of LO and ST (PS3.5 6.2)

_PRIMARY_ONLY = (  # classes of which ImageType value 2 is an enumerated PRIMARY
    "Enhanced",
    "Legacy Converted",
    "Positron Emission",
    "Nuclear Medicine",
    "X-Ray 3D",
    "Breast Tomosynthesis",
    "Ophthalmic Photography",
    "Ophthalmic Optical Coherence",
    "Ophthalmic Tomography",
    "Intravascular Optical Coherence",
)
_OPERATION_CODES = {  # CID 7203; it has no concept for noise reduction, the text says what was done
    "denoise": ("113087", "Smoothing"),
    "superresolve": ("113085", "Spatial resampling"),
}
_ADVERSARIAL = (  # where a reader looks first; the service never takes such a model unasked
    "ADVERSARIALLY TRAINED MODEL: may show texture that was not in the source, not for measurement"
)
_SOURCE_IMAGE = ("121322", "Source image for image processing operation")  # CID 7202
_PROCESSING_EQUIPMENT = ("109102", "Processing Equipment")  # CID 7005


def record_derivation(
    dataset: Dataset, source: Dataset, derivation: Derivation, policy: Policy, now: datetime | None
) -> None:
    """Turns `dataset`, a copy of `source`, into a new object of a new series in the same study."""
    _identify(dataset, derivation, policy)
    _describe_series(dataset, derivation, policy.number_offset)
    _set_dates(dataset, now)
    _set_image_type(dataset, policy.image_type)
    if dataset.get("PerFrameFunctionalGroupsSequence"):
        _record_per_frame(dataset, source, derivation)
    else:
        _record_whole(dataset, source, derivation)
    dataset.ContentQualification = policy.qualification
    equipment = dataset.get("ContributingEquipmentSequence") or []
    dataset.ContributingEquipmentSequence = [*equipment, _equipment(derivation, now)]


def describe(derivation: Derivation) -> str:
    """What was done, in one sentence of at most 1024 ASCII characters (ST)."""
    scale = f" x{derivation.scale}" if derivation.scale > 1 else ""
    unit = str(derivation.evidence.get("unit", ""))
    evidence = {key: value for key, value in derivation.evidence.items() if key != "unit"}
    parts = [
        f"{MANUFACTURER} {derivation.operation}{scale}: model {derivation.model} {derivation.version} "
        f"sha256 {derivation.digest}, {derivation.backend} {derivation.precision}",
        _ADVERSARIAL if derivation.adversarial else "",
        _listed(derivation.options),
        _listed(evidence, unit),
        "Research use only",
    ]
    text = "; ".join(part for part in parts if part)
    return text.encode("ascii", "replace").decode("ascii")[:_SHORT_TEXT]


def _listed(values: dict[str, Any], unit: str = "") -> str:
    """`name value unit, ...`; only measured numbers have a unit, and what is None was not used."""
    texts = []
    for name, value in values.items():
        text = f"{value:.6g} {unit}".strip() if isinstance(value, float) else str(value)
        texts += [] if value is None else [f"{name.replace('_', ' ')} {text}"]
    return ", ".join(texts)


def _identify(dataset: Dataset, derivation: Derivation, policy: Policy) -> None:
    """New instance and series; study, patient and frame of reference stay."""
    for keyword in ("SOPInstanceUID", "ConcatenationUID", "SOPInstanceUIDOfConcatenationSource"):
        if dataset.get(keyword):
            dataset[keyword].value = derived_uid(dataset[keyword].value, derivation, policy)
    dataset.SeriesInstanceUID = derived_series_uid(dataset.SeriesInstanceUID, derivation, policy)


def label_of(operation: str, scale: int, adversarial: bool = False) -> str:
    """What the SeriesDescription of a derived series ends with."""
    words = [operation, f"x{scale}" if scale > 1 else "", "adversarial" if adversarial else ""]
    return f"[{' '.join(filter(None, words))}]"


def _describe_series(dataset: Dataset, derivation: Derivation, offset: int) -> None:
    number = int(dataset.get("SeriesNumber") or 0) + offset
    dataset.SeriesNumber = number if number <= LARGEST_IS else offset
    label = label_of(derivation.operation, derivation.scale, derivation.adversarial)
    before = str(dataset.get("SeriesDescription") or "").strip()[: _LONG_STRING - len(label) - 1]
    dataset.SeriesDescription = f"{before} {label}".strip()


def _set_dates(dataset: Dataset, now: datetime | None) -> None:
    """Dates of the derived object; those of study, acquisition and content stay.

    Without `now` the creation time is left out rather than made up, so that bytes repeat. PET keeps
    its SeriesDate and SeriesTime: decay correction is often to that moment (C.8.9.1).
    """
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID"):
        if keyword in dataset:
            del dataset[keyword]
    if now is None:
        return
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    if dataset.get("Modality") != "PT":
        dataset.SeriesDate, dataset.SeriesTime = date, time


def _set_image_type(dataset: Dataset, second: str) -> None:
    """Value 1 DERIVED; value 2 as asked for, except where the class allows nothing but PRIMARY (C.8.16.1)."""
    name = dataset.SOPClassUID.name
    enhanced = "PerFrameFunctionalGroupsSequence" in dataset and "Secondary Capture" not in name
    if enhanced or name.startswith(_PRIMARY_ONLY):
        second = "PRIMARY"
    dataset.ImageType = ["DERIVED", second, *_values(dataset.get("ImageType"))[2:]]
    for level in walk(dataset):
        if level.get("FrameType"):
            level.FrameType = ["DERIVED", *_values(level.FrameType)[1:]]


def _values(value: object) -> list[str]:
    """One or more values of an element as a list."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]  # type: ignore[attr-defined]


def _record_whole(dataset: Dataset, source: Dataset, derivation: Derivation) -> None:
    """Classic objects: one source image; codes of earlier steps stay before ours (C.12.4.1.1)."""
    earlier = str(dataset.get("DerivationDescription") or "").strip()
    text = describe(derivation)
    dataset.DerivationDescription = (f"{text}; before: {earlier}" if earlier else text)[:_SHORT_TEXT]
    steps = dataset.get("DerivationCodeSequence") or []
    dataset.DerivationCodeSequence = [*steps, _code(*_OPERATION_CODES[derivation.operation])]
    dataset.SourceImageSequence = [_source_image(source)]


def _record_per_frame(dataset: Dataset, source: Dataset, derivation: Derivation) -> None:
    """Enhanced objects: the Derivation Image macro in each frame (C.7.6.16.2.6), evidence on top."""
    for keyword in ("SourceImageSequence", "DerivationCodeSequence", "DerivationDescription"):
        if keyword in dataset:
            del dataset[keyword]
    shared: list[Dataset] = []
    for group in dataset.get("SharedFunctionalGroupsSequence") or []:
        if "DerivationImageSequence" in group:  # a macro is shared or per frame, never both
            shared = list(group.DerivationImageSequence or [])
            del group.DerivationImageSequence
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        item = Dataset()
        item.DerivationDescription = describe(derivation)
        item.DerivationCodeSequence = [_code(*_OPERATION_CODES[derivation.operation])]
        item.SourceImageSequence = [_source_image(source, number)]
        earlier = list(group.get("DerivationImageSequence") or shared)
        group.DerivationImageSequence = [*earlier, item]
    _add_evidence(dataset, source)


def _source_image(source: Dataset, frame: int | None = None) -> Dataset:
    item = _reference(source)
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [_code(*_SOURCE_IMAGE)]
    return item


def _add_evidence(dataset: Dataset, source: Dataset) -> None:
    """The source among the evidence, in which each study has one item (C.7.6.16.2.6, table 10-4)."""
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedSOPSequence = [_reference(source)]
    studies = list(dataset.get("SourceImageEvidenceSequence") or [])
    same = [study for study in studies if study.get("StudyInstanceUID") == source.StudyInstanceUID]
    if same:
        same[0].ReferencedSeriesSequence = [*(same[0].get("ReferencedSeriesSequence") or []), series]
    else:
        study = Dataset()
        study.StudyInstanceUID = source.StudyInstanceUID
        study.ReferencedSeriesSequence = [series]
        studies.append(study)
    dataset.SourceImageEvidenceSequence = studies


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


def _equipment(derivation: Derivation, now: datetime | None) -> Dataset:
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = derivation.model[:_LONG_STRING]
    item.DeviceUID = device_uid(derivation.digest)
    item.SoftwareVersions = [derivation.version[:_LONG_STRING], derivation.digest[:_LONG_STRING]]
    if now is not None:
        item.ContributionDateTime = now.strftime("%Y%m%d%H%M%S.%f")
    item.ContributionDescription = describe(derivation)
    item.PurposeOfReferenceCodeSequence = [_code(*_PROCESSING_EQUIPMENT)]
    return item


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
