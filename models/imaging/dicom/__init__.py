"""DICOM in, DICOM out; the only package that imports pydicom, and only where it is used."""

from models.imaging.dicom.frames import open_dicom_frames
from models.imaging.dicom.reader import decode_dicom
from models.imaging.dicom.writer import encode_dicom, native_pixels, write_dicom

__all__ = ["decode_dicom", "encode_dicom", "native_pixels", "open_dicom_frames", "write_dicom"]
