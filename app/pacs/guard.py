"""Series that no rule may take, whatever it says: refused before the rules are asked.

`ours` comes first: what this service stored is announced by the PACS like anything else, and a rule
that took it would go round for ever.
"""

from __future__ import annotations

from app.pacs.candidate import Candidate

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SCREENS = tuple(_STORAGE + part for part in ("7", "7.1", "7.2", "7.3", "7.4"))  # Secondary Capture (PS3.4 B.5)
_NO_IMAGES = tuple(  # families of classes: waveforms, presentation states, raw data, reports, documents, plans
    _STORAGE + part for part in ("9.", "11.", "66", "67", "68.", "78.", "79.", "80.", "88.", "90.", "104.", "481.")
)
_PLAIN_IMAGES = (_STORAGE + "481.1",)  # RT images are images
_NO_IMAGE_MODALITIES = frozenset(  # PS3.3 C.7.3.1.1.1
    ["AU", "DOC", "ECG", "EEG", "EMG", "EPS", "FID", "HD", "KO", "M3D", "PLAN", "PR", "REG", "RESP", "RTDOSE"]
    + ["RTPLAN", "RTRECORD", "RTSTRUCT", "SEG", "SMR", "SR", "STAIN", "TEXTUREMAP"]
)
_LOCALIZERS = frozenset({"LOCALIZER", "SCOUT", "SURVEY", "TOPOGRAM"})

REFUSALS = {
    "ours": "made by this service",
    "report": "a report, document, plan or other object without an image",
    "screen": "a secondary capture, such as a screen",
    "localizer": "a localizer",
    "derived": "derived from other images",
}


def refusal(candidate: Candidate) -> str | None:
    """Why a series is never taken by a rule, a key of `REFUSALS`; None where the rules decide."""
    image_type = [value.strip().upper() for value in candidate.image_type]
    if candidate.ours:
        return "ours"
    if is_no_image(candidate):
        return "report"
    if candidate.sop_class in _SCREENS or "SCREEN SAVE" in image_type:
        return "screen"
    if _LOCALIZERS.intersection(image_type):
        return "localizer"
    return "derived" if image_type[:1] == ["DERIVED"] else None


def is_no_image(candidate: Candidate) -> bool:
    """By the class of its objects, or by its modality where that is not known."""
    if candidate.sop_class:
        return candidate.sop_class.startswith(_NO_IMAGES) and candidate.sop_class not in _PLAIN_IMAGES
    return candidate.tags.get("Modality", "").strip().upper() in _NO_IMAGE_MODALITIES
