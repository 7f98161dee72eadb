"""DICOM in, DICOM out; the only package that imports pydicom, and only where it is used."""

from models.imaging.dicom.reader import decode_dicom
from models.imaging.dicom.writer import encode_dicom

__all__ = ["decode_dicom", "encode_dicom"]
