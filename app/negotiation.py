"""Chooses the format of an answer from the `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.errors import NotAcceptable
from models.imaging.codec import MEDIA_TYPES, output_format
from models.imaging.image import Image


def choose(accept: str | None, formats: Sequence[str]) -> str:
    """The most wanted of `formats`, whose first is the image's own and wins where nothing is preferred.

    Raises NotAcceptable, with the media types that could be had.
    """
    ranges = parse_accept(accept)
    weights = [weight(MEDIA_TYPES[format], ranges) for format in formats]
    best = max(weights, default=0.0)
    if best <= 0:
        raise NotAcceptable([MEDIA_TYPES[format] for format in formats])
    return formats[weights.index(best)]


def parse_accept(accept: str | None) -> dict[str, float]:
    """Media range -> quality from 0 to 1; parameters other than `q` are ignored, malformed ranges have no say."""
    ranges = {}
    for part in (accept or "*/*").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        if "/" in name:
            ranges[name] = _number(quality)
    return ranges


def weight(media_type: str, ranges: dict[str, float]) -> float:
    """Quality by the most specific range that matches."""
    for name in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0.0


def _number(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def formats_of(image: Image) -> list[str]:
    """The formats that an image's stored values can be written in, its own first."""
    formats = [output_format(image)]
    if image.frames == 1 and image.pixels.dtype in (np.uint8, np.uint16):
        formats.append("png")
    return list(dict.fromkeys([*formats, "tiff", "npy"]))
