"""What becomes of each attribute of a derived object, as one table: `python -m models.imaging.dicom.treatment`
prints docs/derived-objects.md. It takes its lists from the code, and tests hold every row against what the
writer does, so that the page cannot say anything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from models.imaging.dicom import geometry, kind, scope, writer
from models.imaging.policy import DEFAULT

Effect = Literal["kept", "removed", "new", "set", "appended", "divided", "multiplied", "moved", "rewritten"]

KEPT: Effect = "kept"
REMOVED: Effect = "removed"
NEW: Effect = "new"
SET: Effect = "set"
APPENDED: Effect = "appended"
DIVIDED: Effect = "divided"
MULTIPLIED: Effect = "multiplied"
MOVED: Effect = "moved"
REWRITTEN: Effect = "rewritten"


@dataclass(frozen=True)
class Treatment:
    """What becomes of some attributes when an image is denoised, and when it gets `s` times as many rows and columns.

    `kept` as in the source; `removed`; `new` another value in every derived object; `set` to a value
    of ours; `appended` our item after those of the source; `divided` or `multiplied` by s; `moved` so
    that the image stays where it is; `rewritten` with the restored content.
    """

    attributes: tuple[str, ...]
    denoise: Effect
    superresolve: Effect
    note: str
    section: str  # of PS3.3


def _both(effect: Effect, note: str, section: str, *attributes: str) -> Treatment:
    return Treatment(attributes, effect, effect, note, section)


def _grown(effect: Effect, note: str, section: str, *attributes: str) -> Treatment:
    return Treatment(attributes, KEPT, effect, note, section)


TREATMENTS: tuple[Treatment, ...] = (
    _both(KEPT, "the object stays what it was, in its study and its space", "A, C.7.1, C.7.2", "SOPClassUID",
          "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "Modality", "InstanceNumber"),
    _both(NEW, "name-based UUIDs over source, operation, model, options, backend, precision, tile plan where it "
          "changes pixels, and the site's policy where it is not the default; a retry makes the same",
          "C.12.1, C.7.3.1", "SOPInstanceUID", "SeriesInstanceUID", "ConcatenationUID",
          "SOPInstanceUIDOfConcatenationSource"),
    _both(SET, "value 1 DERIVED; value 2 by policy, PRIMARY where the class knows nothing else (enhanced, PET, NM); "
          "the rest is kept; value 1 of FrameType too", "C.7.6.1.1.2, C.8.16.1", "ImageType"),
    _both(SET, "the number and an offset (policy); the description, shortened, and `[denoise]` or `[superresolve x2]`; "
          "from an adversarially trained model, `[superresolve x2 adversarial]`",
          "C.7.3.1", "SeriesNumber", "SeriesDescription"),
    _both(KEPT, "dates of study, acquisition and content", "C.7.2.1, C.7.6.1", "StudyDate", "StudyTime",
          "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime"),
    _both(SET, "by policy", "C.12.1, C.8.13.2", "ContentQualification"),
    _both(SET, "what was done, by which model to its digest, with which options, and what was measured (noise, "
          "or how well the result, reduced again, agrees with the source); of an adversarially trained model, that it "
          "is not for measurement; what was done earlier comes last (per frame in enhanced objects)", "C.12.4",
          "DerivationDescription"),
    _both(APPENDED, "113087 Smoothing, or 113085 Spatial resampling (per frame in enhanced objects)",
          "C.12.4, CID 7203", "DerivationCodeSequence"),
    _both(SET, "the source, 121322 Source image for image processing operation, SpatialLocationsPreserved YES; in "
          "enhanced objects per frame, with SourceImageEvidenceSequence on top", "C.12.4, C.7.6.16.2.6",
          "SourceImageSequence"),
    _both(APPENDED, "109102 Processing Equipment: MedRestore, the model, its version and digest, and a DeviceUID made "
          "of that digest; the scanner stays the Manufacturer", "C.12.1", "ContributingEquipmentSequence"),
    _both(KEPT, "the scanner, and what is known of identity and content", "C.7.5.1, C.12.1", "Manufacturer",
          "PatientIdentityRemoved", "DeidentificationMethod", "BurnedInAnnotation", "SyntheticData"),
    _both(KEPT, "once lossy, always lossy; set where the source's transfer syntax lost something and nobody said so",
          "C.7.6.1.1.5", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    _both(KEPT, "pixels are computed in floats, rounded, and held within BitsStored", "C.7.6.3", "SamplesPerPixel",
          "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    _both(KEPT, "restored before it, so that HU stay HU and every PET slice keeps its own slope; MONOCHROME1 keeps "
          "its sense; YBR is written as RGB by pixel", "C.11.1, C.11.2, C.7.6.3", "RescaleSlope", "RescaleIntercept",
          "RescaleType", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTSequence",
          "PhotometricInterpretation", "ICCProfile"),
    _both(KEPT, "padding pixels come back as they were, repeated under s; no other pixel gets a padding value",
          "C.7.5.1.1.2", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    _both(REMOVED, "told of the old pixels, or vouched for them", "C.7.6.3, C.12.1", *writer.STALE),
    _both(REWRITTEN, "Explicit VR Little Endian, whatever the source's transfer syntax", "C.7.6.3", "PixelData"),
    _grown(MULTIPLIED, "", "C.7.6.3", "Rows", "Columns"),
    _grown(DIVIDED, "decimal strings of at most 16 characters, in functional groups too", "C.7.6.2, C.8.7.5",
           *geometry.SPACINGS),
    _grown(MOVED, "by (1/s - 1)/2 of an old pixel along rows and columns: the outer edges stay; in functional groups "
           "too; refused where orientation or spacing is missing", "C.7.6.2.1.1", "ImagePositionPatient",
           "ImagePositionVolume"),
    _grown(MOVED, "pixel numbers: bounds of shutters, collimators and sensing regions, ultrasound regions",
           "C.7.6.11, C.8.7.3, C.8.5.5", *(f"{shape}LeftVerticalEdge" for shape in geometry.SHAPES),
           "SequenceOfUltrasoundRegions"),
    _grown(MULTIPLIED, "lengths in pixels", "C.7.6.10, C.7.6.11", "MaskSubPixelShift",
           *(f"RadiusOfCircular{shape}" for shape in geometry.SHAPES)),
    _both(KEPT, "in millimetres, in detector elements, or of the acquisition", "C.7.6.2, C.8.11.4",
          "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "DetectorElementSpacing",
          "FieldOfViewOrigin", "AcquisitionMatrix", "ReconstructionDiameter", "PixelAspectRatio"),
)  # fmt: skip


_HEAD = """# Derived objects

What MedRestore writes when a DICOM object was denoised, or super-resolved by a scale s (2 or 4): a new object of
the same SOP class, in a new series of the same study. This page is printed by
`python -m models.imaging.dicom.treatment`. Sections are those of DICOM PS3.3.

The writer is `encode_dicom` of `models.imaging.dicom`, the reader `decode_dicom`:

```python
image = decode_dicom(path.read_bytes())
restored = ...  # the same image with other pixels: image.with_pixels(pixels, scale, padding)
derived = encode_dicom(restored, derivation, now, Policy(number_offset=500))
```

Everything that is not in the table is kept as it is, but for private attributes (removed, unless their Private
Creator is allowed by policy) and overlays, groups 60xx (kept; under a scale their bits are repeated and their origin
moved). Presentation states, key objects, reports and segmentations that refer to the source go on doing so.

| Attributes | Denoised | Scaled | How | Section |
| --- | --- | --- | --- | --- |"""
_OTHERS = """
## What a site decides

| Setting | Default |
| --- | --- |"""
_REFUSED = """
A change of these gives derived objects other UIDs, since an archive keeps the first object of a UID and drops the
second: else the change would never show.

## What is refused

Beside `corrupt`, `truncated` and `too_large`:
"""
_KINDS = """
`invalid_geometry` and `too_large_for_dicom` refuse a scale alone.

## What a route takes

A route takes plain images alone; a call that names its object is obeyed, and may yet be refused as above.
"""


def page() -> str:
    """The text of docs/derived-objects.md."""
    rows = [
        f"| {', '.join(t.attributes)} | {t.denoise} | {t.superresolve} | {t.note} | {t.section} |" for t in TREATMENTS
    ]
    choices = [f"| `dicom_{field.name}` | `{getattr(DEFAULT, field.name)}` |" for field in fields(DEFAULT)]
    refused, kinds = _listed(scope.__doc__), _listed(kind.Kind.__doc__)
    return "\n".join([_HEAD, *rows, _OTHERS, *choices, _REFUSED, refused, _KINDS, kinds, ""])


def _listed(text: str | None) -> str:
    """The lines of a docstring's table (a word, spaces, its meaning) as a list."""
    found = [re.fullmatch(r"\s*`?(\w+)`?\s{2,}(.*)", line) for line in (text or "").splitlines()]
    return "\n".join(f"- `{match[1]}`: {match[2]}" for match in found if match)


if __name__ == "__main__":
    print(page(), end="")
