"""Which format an answer comes in."""

from __future__ import annotations

import numpy as np
import pytest

from app.errors import NotAcceptable
from app.negotiation import choose, formats_of
from models.imaging.codec import encode
from models.imaging.image import Image, ValueMap

FORMATS = ["tiff", "png", "npy"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "tiff"),
        ("", "tiff"),
        ("*/*", "tiff"),
        ("image/*", "tiff"),
        ("image/png", "png"),
        ("IMAGE/PNG", "png"),
        ("application/x-npy, image/png;q=0.5", "npy"),
        ("image/png;q=0.5, */*;q=0.4", "png"),
        ("image/tiff;q=0, */*", "png"),
        ("image/*;q=0, application/*", "npy"),
        ("text/html,application/xhtml+xml,image/webp,*/*;q=0.8", "tiff"),
        ("image/png;level=1", "png"),
        ("image/png, image/tiff", "tiff"),
        ("nonsense, image/png", "png"),
    ],
)
def test_the_most_wanted_format_is_chosen(accept: str | None, expected: str) -> None:
    assert choose(accept, FORMATS) == expected


@pytest.mark.parametrize("accept", ["text/html", "application/dicom", "*/*;q=0", "nonsense", "image/png;q=x"])
def test_nothing_acceptable_is_refused_with_what_there_is(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/tiff, image/png, application/x-npy"):
        choose(accept, FORMATS)


@pytest.mark.parametrize("format", ["png", "tiff", "npy", "jpeg"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_every_offered_format_can_be_written(format: str, dtype: str, frames: int, scale: float) -> None:
    pixels = np.arange(frames * 12).reshape(frames, 3, 4, 1).astype(dtype)
    image = Image(pixels, ValueMap(scale, 0.0), format, 0.0, 100.0)
    offered = formats_of(image)
    assert offered[0] == ("png" if format == "jpeg" else format)
    for other in offered[1:]:
        assert encode(image, other)
