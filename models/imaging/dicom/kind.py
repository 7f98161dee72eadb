"""What kind of object a header tells of, for whoever chooses among the objects of an archive.

A route restores what nobody looked at first, so it takes plain images alone. A call that names its
object is obeyed: it restores a screen capture, a localizer or a derived image too, and the decoder
refuses what cannot be restored (`scope`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydicom import uid
from pydicom.dataset import Dataset

from models.imaging.dicom.identity import device_uid
from models.imaging.dicom.provenance import MANUFACTURER, label_of
from models.imaging.dicom.quiet import quiet
from models.imaging.dicom.scope import NOT_INTENSITIES, holds_image

Name = Literal["image", "ours", "report", "unsupported", "screen", "localizer", "derived"]
Header = Dataset | Mapping[str, Any]  # attributes by DICOM keyword

_LABELS = tuple(
    label_of(*made, adversarial)
    for made in (("denoise", 1), ("superresolve", 2), ("superresolve", 4))
    for adversarial in (False, True)
)
_NO_IMAGE_MODALITIES = {  # C.7.3.1.1.1
    *("SR", "PR", "KO", "DOC", "REG", "FID", "RWV", "ASMT", "TEXTUREMAP", "PLAN", "RTSTRUCT", "RTPLAN", "RTRECORD"),
    *("ECG", "EEG", "EMG", "EOG", "EPS", "HD", "RESP", "AU"),
}
_UNSUPPORTED_MODALITIES = {"SEG", "RTDOSE"}
_SCREEN_TYPES = {"SCREEN SAVE", "SCREENSAVE", "DOSE_INFO", "DOSE INFO", "PROTOCOL"}


@dataclass(frozen=True)
class Kind:
    """A judgement, and why, in words that repeat nothing of the header.

    `image`        a plain image of a patient, as far as the header tells: a route takes it
    `ours`         made by MedRestore, by whatever version of whatever model
    `report`       holds no image: reports, presentation states, waveforms, plans, documents
    `unsupported`  holds numbers that are no intensities: segmentations, dose grids, maps
    `screen`       a secondary capture: screen shots, dose and protocol pages, scanned paper
    `localizer`    a survey image that slices are planned on
    `derived`      made by others from images that are there too
    """

    name: Name
    reason: str

    @property
    def routed(self) -> bool:
        """Whether a route takes it; a direct call tries all but reports and unsupported objects in vain."""
        return self.name == "image"


def is_ours(header: Header) -> bool:
    """Whether MedRestore made an object: a header with ContributingEquipmentSequence tells for certain.

    Our item says which model it was, by its digest, and the DeviceUID follows from that: so outputs
    of models that nobody has any more are known too, and nobody else's item is. Raises CorruptImage
    for a header that cannot be read.
    """
    with quiet("read"):
        return any(_is_our_equipment(item) for item in header.get("ContributingEquipmentSequence") or [])


def _is_our_equipment(item: Header) -> bool:
    devices = {device_uid(version) for version in _values(item, "SoftwareVersions")}
    return item.get("Manufacturer") == MANUFACTURER and item.get("DeviceUID") in devices


def kind_of(header: Header) -> Kind:
    """The kind of an object by a full header, or by what a query or a change feed gives of it.

    Read are, where they are there: SOPClassUID, Modality, ImageType, SeriesDescription, and
    ContributingEquipmentSequence. Texts may be lists or joined by backslashes. What is missing tells
    nothing: `image` then means that nothing is known against it. Raises CorruptImage.
    """
    if is_ours(header):
        return Kind("ours", "made by MedRestore")
    with quiet("read"):
        if str(header.get("SeriesDescription") or "").strip().endswith(_LABELS):
            return Kind("ours", "made by MedRestore")
        return _by_class(header) or _by_image_type(_values(header, "ImageType")) or Kind("image", "an image")


def _by_class(header: Header) -> Kind | None:
    """What SOP class and modality rule out."""
    sop_class, modality = uid.UID(str(header.get("SOPClassUID") or "")), header.get("Modality")
    if sop_class in NOT_INTENSITIES or modality in _UNSUPPORTED_MODALITIES:
        return Kind("unsupported", NOT_INTENSITIES.get(sop_class, "a segmentation or a dose grid"))
    if modality in _NO_IMAGE_MODALITIES or (sop_class and not holds_image(sop_class, unknown=True)):
        return Kind("report", "no image: a report, a presentation state, a plan, a waveform or a document")
    if "Secondary Capture" in sop_class.name:
        return Kind("screen", "a secondary capture")
    return None


def _by_image_type(values: list[str]) -> Kind | None:
    """What ImageType tells (C.7.6.1.1.2): value 1 origin, values 3 and on what the class and the vendor say."""
    if "LOCALIZER" in values[2:]:
        return Kind("localizer", "a localizer")
    if _SCREEN_TYPES & set(values[2:]):
        return Kind("screen", "a screen")
    if values[:1] == ["DERIVED"]:
        return Kind("derived", "derived from other images")
    return None


def _values(header: Header, keyword: str) -> list[str]:
    """The values of an attribute, one or many."""
    value = header.get(keyword)
    if value is None or value == "":
        return []
    texts = value.split("\\") if isinstance(value, str) else value
    return [str(text).strip() for text in texts]
