"""DICOM in, DICOM out; the only package that imports pydicom, and only where it is used.

decode_dicom       a Part 10 file as an `Image`, or a refusal with its reason (`scope`)
open_dicom_frames  the same frame by frame, in bounded memory
encode_dicom       an `Image` and its `Derivation` as a derived object; `treatment` tells what becomes
                   of every attribute, and prints docs/derived-objects.md
write_dicom        the same into a file, with `native_pixels` that may come from one
derived_uid        what a derived object, or its series, will be called: known before it is made
kind_of, is_ours   what a route takes, and what it must never take
"""

from models.imaging.dicom.frames import open_dicom_frames
from models.imaging.dicom.identity import derived_uid
from models.imaging.dicom.kind import Kind, is_ours, kind_of
from models.imaging.dicom.reader import decode_dicom
from models.imaging.dicom.writer import encode_dicom, native_pixels, write_dicom

__all__ = [
    "Kind",
    "decode_dicom",
    "derived_uid",
    "encode_dicom",
    "is_ours",
    "kind_of",
    "native_pixels",
    "open_dicom_frames",
    "write_dicom",
]
