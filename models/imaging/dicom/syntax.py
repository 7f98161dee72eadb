"""Transfer syntaxes that are read, and which decoder reads each (PS3.5 sections 8 and 10, annex A)."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import uid


@dataclass(frozen=True)
class Syntax:
    """How the pixel data of one transfer syntax are decoded.

    `plugin` is the one pydicom decoding plug-in that is used. It is named, so that whatever else is
    installed (pylibjpeg-libjpeg is GPL-3 and differs by a grey level) cannot change a result, and
    there is no second choice: a frame that one decoder refuses is damaged, not a matter of taste.
    """

    plugin: str = ""  # native syntaxes need none
    coding: str = "native"  # "native", "rle", "jpeg", "jpeg-ls" or "jpeg2000"
    lossy: bool = False  # the syntax says that information was lost; 4.91 and 4.203 may or may not
    method: str = ""  # LossyImageCompressionMethod (PS3.3 C.7.6.1.1.5.1)


_OPENJPEG = "pylibjpeg"  # with pylibjpeg-openjpeg
# gdcm decodes these to the same values, but a damaged Huffman table makes it abort the process.
_JPEG_8BIT = Syntax("pillow", "jpeg", lossy=True, method="ISO_10918_1")
_JPEG_LOSSLESS = Syntax("gdcm", "jpeg")

SYNTAXES: dict[str, Syntax] = {
    uid.ImplicitVRLittleEndian: Syntax(),
    uid.ExplicitVRLittleEndian: Syntax(),
    uid.ExplicitVRBigEndian: Syntax(),
    uid.DeflatedExplicitVRLittleEndian: Syntax(),
    uid.RLELossless: Syntax("pydicom", "rle"),
    uid.JPEGBaseline8Bit: _JPEG_8BIT,
    uid.JPEGExtended12Bit: _JPEG_8BIT,
    uid.JPEGLossless: _JPEG_LOSSLESS,
    uid.JPEGLosslessSV1: _JPEG_LOSSLESS,
    uid.JPEGLSLossless: Syntax("pyjpegls", "jpeg-ls"),
    uid.JPEGLSNearLossless: Syntax("pyjpegls", "jpeg-ls", lossy=True, method="ISO_14495_1"),
    uid.JPEG2000Lossless: Syntax(_OPENJPEG, "jpeg2000"),
    uid.JPEG2000: Syntax(_OPENJPEG, "jpeg2000", method="ISO_15444_1"),
    uid.HTJ2KLossless: Syntax(_OPENJPEG, "jpeg2000"),
    uid.HTJ2KLosslessRPCL: Syntax(_OPENJPEG, "jpeg2000"),
    uid.HTJ2K: Syntax(_OPENJPEG, "jpeg2000", lossy=True, method="ISO_15444_15"),
}
