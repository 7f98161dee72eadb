"""Frames one by one: the same image, and the same file, as all of it in memory."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import CorruptImage, ImageError, ImageTooLarge
from models.imaging.codec import OUTPUTS, decode, encode
from models.imaging.frames import FrameFile, open_frames
from models.imaging.image import Image, Limits, frame_of
from tests.dicom_objects import DENOISE, dataset_of, enhanced, file_of, packaged, packaged_in_scope

LIMITS = Limits()
SMALL = 300_000  # bytes; larger files teach nothing more


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def values(*shape: int, dtype: str = "u2") -> np.ndarray:
    return np.random.default_rng(4).integers(0, 200, shape).astype(dtype)


FILES = {
    **{name: packaged(name) for name in packaged_in_scope(SMALL)},
    "enhanced": file_of(enhanced(5, (2.0,) * 5)),
    "odd bytes": file_of(dataset_of(values(3, 5, 7, dtype="u1"))),
    "padding in one frame": file_of(dataset_of(np.stack([values(4, 4), values(4, 4) * 0 + 7]), PixelPaddingValue=7)),
    "12 bits": file_of(dataset_of(values(2, 4, 6), BitsStored=12, PixelPaddingValue=63536)),
    "float": npy(np.random.default_rng(1).normal(0, 900, (4, 6, 5)).astype("f4")),
    "big endian": npy(values(3, 4, 5, dtype=">i2")),
    "colour": npy(values(2, 4, 5, 3, dtype="u1")),
    "fortran": npy(np.asfortranarray(values(3, 4, 5))),
    "one frame": npy(values(4, 5)),
}


def header(image: Image) -> Image:
    """What is left of an image without pixels, and without what cannot be compared."""
    return replace(image, pixels=np.zeros(0), padding=None, source=None)


@pytest.mark.parametrize("name", FILES)
def test_frames_and_files_are_those_of_the_whole_image(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(FILES[name])
    whole = decode(FILES[name])
    formats = {format for format in OUTPUTS if format in (whole.format, "tiff", "npy")}
    with open_frames(tmp_path / "in", LIMITS, LIMITS) as frames:
        frames.check()
        assert (frames.image.pixels.shape, frames.image.pixels.dtype) == (whole.pixels.shape, whole.pixels.dtype)
        assert str(header(frames.image)) == str(header(whole))
        for format in formats:
            (tmp_path / "frames").write_bytes(b"")
            file = FrameFile(tmp_path / "frames", frames.image, format)
            for index in range(whole.frames):
                frame, expected = frames.read(index), frame_of(whole, index)
                np.testing.assert_array_equal(frame.pixels, expected.pixels)
                assert (frame.padding is None) == (expected.padding is None)
                np.testing.assert_array_equal(frame.padding, expected.padding)
                file.write(index, frame)
            file.encode(tmp_path / "out", DENOISE)
            assert (tmp_path / "out").read_bytes() == encode(whole, format, DENOISE)


@settings(max_examples=20, deadline=None)
@given(order=st.lists(st.integers(0, 1), min_size=1, max_size=6))
def test_compressed_frames_come_in_any_order(order: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rle") / "in"
    path.write_bytes(packaged("SC_rgb_rle_2frame.dcm"))
    whole = decode(path.read_bytes())
    with open_frames(path, LIMITS, LIMITS) as frames:
        for index in order:
            np.testing.assert_array_equal(frames.read(index).pixels[0], whole.pixels[index])


def test_the_image_of_all_frames_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(npy(values(40, 64, 64)))
    with open_frames(tmp_path / "in", LIMITS, LIMITS) as frames:
        assert frames.image.pixels.nbytes == 40 * 64 * 64 * 2
        assert set(frames.image.pixels.strides) == {0}


@pytest.mark.parametrize(
    ("limits", "whole"),
    [
        (Limits(bytes=100), LIMITS),
        (Limits(pixels=50), LIMITS),
        (Limits(frames=2), LIMITS),
        (LIMITS, Limits(pixels=10)),
    ],
)
@pytest.mark.parametrize("name", ["enhanced", "colour"])
def test_limits_hold_before_anything_is_decoded(name: str, limits: Limits, whole: Limits, tmp_path: Path) -> None:
    body = FILES[name] if name == "enhanced" else npy(values(3, 4, 5, 3, dtype="u1"))
    (tmp_path / "in").write_bytes(body)
    with pytest.raises(ImageTooLarge), open_frames(tmp_path / "in", limits, whole):
        pass


def test_what_is_decoded_whole_keeps_to_the_limits_of_memory(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(packaged("image_dfl.dcm"))
    with pytest.raises(ImageTooLarge, match="whole"), open_frames(tmp_path / "in", LIMITS, Limits(bytes=1000)):
        pass


def assert_refused_alike(body: bytes, kind: type[ImageError], folder: Path) -> None:
    """Frame by frame, a bad file is refused before the work, with the words of the decoder."""
    (folder / "in").write_bytes(body)
    with pytest.raises(kind) as whole:
        decode(body)
    with pytest.raises(kind) as single, open_frames(folder / "in", LIMITS, LIMITS) as frames:
        frames.check()
    assert str(single.value) == str(whole.value)


@pytest.mark.parametrize("name", ["enhanced", "MR_small_RLE.dcm", "MR_small.dcm", "odd bytes"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_cut_short_is_refused_with_the_words_of_the_decoder(name: str, share: float, tmp_path: Path) -> None:
    body = FILES[name][: int(len(FILES[name]) * share)]
    assert_refused_alike(body, ImageError, tmp_path)


def test_missing_compressed_frames_show_before_the_work(tmp_path: Path) -> None:
    body = packaged("SC_rgb_rle_2frame.dcm")
    body = body.replace(b"\x28\x00\x08\x00IS\x02\x002 ", b"\x28\x00\x08\x00IS\x02\x004 ")
    assert body != packaged("SC_rgb_rle_2frame.dcm")
    assert_refused_alike(body, CorruptImage, tmp_path)


def test_a_header_that_is_larger_than_memory_may_hold_is_refused(tmp_path: Path) -> None:
    dataset = dataset_of(np.zeros((32, 32), np.uint16))
    dataset.add_new(0x00090010, "LO", "TEST")
    dataset.add_new(0x00091001, "OB", bytes(3_000_000))
    path = tmp_path / "large.dcm"
    path.write_bytes(file_of(dataset))
    with pytest.raises(ImageTooLarge, match="beside the pixels"), open_frames(path, Limits(), Limits(bytes=2**21)):
        pass
    with open_frames(path, Limits(), Limits(bytes=2**23)) as frames:
        assert frames.read(0).pixels.shape == (1, 32, 32, 1)
