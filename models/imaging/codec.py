"""Bytes to `Image` and back, whatever the format.

The content decides what a file is, never its name. Every header is read and judged against the
limits before a pixel is decoded. What is stored comes back stored: no format is widened, narrowed
or rescaled on its way through, and an unchanged image is encoded to the same pixels bit for bit.

Formats of answers. The input's own by default; a JPEG input is answered as PNG, since a second
lossy step would undo the work. Any image can be asked for in another format as long as that format
holds its *stored* values; rescale, window and unit are not applied, and what cannot be held is
refused (UnsupportedImage), never rounded:

    png    unsigned 8 and 16 bit, one frame; where the smallest value is white (MONOCHROME1,
           MINISWHITE) values are mirrored within [minimum, maximum], since grey PNG has 0 as black
    tiff   every type, frames as pages; smallest value white is MINISWHITE
    npy    every type, (H, W), (H, W, 3), (F, H, W) or (F, H, W, 3); the sense of grey is not recorded
    dicom  from DICOM only, since nothing else names a patient and a study

`Image.spacing_mm` is written to PNG and TIFF as resolution; ICC profiles pass between raster formats.
"""

from __future__ import annotations

from datetime import datetime

from models.errors import (
    CorruptImage,
    ImageError,
    ImageTooLarge,
    OptionError,
    UnknownFormat,
    UnsupportedImage,
)
from models.imaging import raster_jpeg, raster_npy, raster_png, raster_tiff
from models.imaging.image import Derivation, Image, Limits
from models.imaging.policy import DEFAULT, Policy

MEDIA_TYPES = {
    "png": "image/png",
    "tiff": "image/tiff",
    "jpeg": "image/jpeg",
    "npy": "application/x-npy",
    "dicom": "application/dicom",
}
EXTENSIONS = {"png": ".png", "tiff": ".tiff", "jpeg": ".jpg", "npy": ".npy", "dicom": ".dcm"}
OUTPUTS = ("png", "tiff", "npy", "dicom")
LIMITS = Limits()

_MAGICS = {
    "png": (raster_png.MAGIC,),
    "tiff": raster_tiff.MAGICS,
    "jpeg": (raster_jpeg.MAGIC,),
    "npy": (raster_npy.MAGIC,),
}
_DECODERS = {
    "png": raster_png.decode_png,
    "tiff": raster_tiff.decode_tiff,
    "jpeg": raster_jpeg.decode_jpeg,
    "npy": raster_npy.decode_npy,
}
_ENCODERS = {"png": raster_png.encode_png, "tiff": raster_tiff.encode_tiff, "npy": raster_npy.encode_npy}


def decode(data: bytes, limits: Limits = LIMITS, hint: str | None = None) -> Image:
    """Decodes a file of any format that is read here.

    `hint` is a file name or media type; it helps to say what is wrong, and decides nothing. Raises
    ImageError and nothing else: UnknownFormat, CorruptImage, UnsupportedImage, NonFinitePixels or
    ImageTooLarge.
    """
    if len(data) > limits.bytes:
        raise ImageTooLarge(f"the file has {len(data)} bytes, more than the limit of {limits.bytes}")
    format = detect_format(data, hint)
    try:
        return _decode(format, data, limits)
    except ImageError:
        raise
    except MemoryError as exc:
        raise ImageTooLarge(f"the {format} file needs more memory than there is") from exc
    except Exception as exc:  # damaged files raise whatever the decoders' authors did not expect
        raise CorruptImage(f"the {format} file is damaged: it cannot be decoded ({type(exc).__name__})") from exc


def encode(
    image: Image,
    format: str | None = None,
    derivation: Derivation | None = None,
    now: datetime | None = None,
    policy: Policy = DEFAULT,
) -> bytes:
    """Encodes stored values as `format`: one of `OUTPUTS`, or None for the image's own (JPEG: PNG).

    DICOM needs the derivation, records `now` as the time of processing, and follows the site's
    `policy`; the other formats hold nothing of these. Raises OptionError for a format that is not
    written, UnsupportedImage where the format cannot hold the image.
    """
    format = output_format(image) if format is None else format
    if format in _ENCODERS:
        return _ENCODERS[format](image)
    if format != "dicom":
        raise OptionError(f"{format!r} is not written; choose one of {', '.join(OUTPUTS)}")
    if image.format != "dicom":
        raise UnsupportedImage("dicom_source", "only a DICOM input can be answered as DICOM")
    if derivation is None:
        raise OptionError("a DICOM answer needs the derivation that made it")
    from models.imaging.dicom import encode_dicom

    return encode_dicom(image, derivation, now, policy)


def output_format(image: Image) -> str:
    """The format of an answer where the caller asked for none."""
    return "png" if image.format == "jpeg" else image.format


def detect_format(data: bytes, hint: str | None = None) -> str:
    """The format of a file by its first bytes; raises UnknownFormat."""
    if data[128:132] == b"DICM":  # first, because a DICOM preamble may be that of another format
        return "dicom"
    for format, magics in _MAGICS.items():
        if data.startswith(magics):
            return format
    if not data:
        raise UnknownFormat("there is no image: the file is empty")
    if _names_dicom(hint):
        raise UnknownFormat("the file is no DICOM file: there is no Part 10 header (128 bytes, then DICM)")
    raise UnknownFormat("the file is none of DICOM, PNG, TIFF, JPEG and NPY, judged by its content")


def _decode(format: str, data: bytes, limits: Limits) -> Image:
    if format != "dicom":
        return _DECODERS[format](data, limits)
    from models.imaging.dicom import decode_dicom  # here, so that training can do without pydicom

    return decode_dicom(data, limits)


def _names_dicom(hint: str | None) -> bool:
    name = (hint or "").lower().partition(";")[0].strip()
    return name == MEDIA_TYPES["dicom"] or name.endswith((EXTENSIONS["dicom"], ".dicom"))
