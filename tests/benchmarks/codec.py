"""CPU milliseconds and size of every format both ways, beside libpng at its fastest.

    python -m tests.benchmarks.codec [--sides 256 512 2048]

The image is smooth with grain, as medical images are: 16 bits of it hardly compress. The fastest run counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import imagecodecs
import numpy as np

from models.imaging.codec import decode, encode
from tests.dicom_objects import DENOISE, dataset_of, file_of
from tests.reference_images import npy, tiff

ROUNDS = 7


def grainy(side: int, dtype: type) -> np.ndarray:
    """(side, side): waves with noise of a twentieth of the range."""
    x = np.linspace(0, 6 * np.pi, side)
    plane = 0.5 + 0.3 * np.sin(x)[:, None] * np.cos(x) + np.random.default_rng(0).normal(0, 0.05, (side, side))
    return np.asarray(np.clip(plane, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def files_of(pixels: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The pixels in every format that is read and written."""
    raw = npy(pixels)
    yield "npy", raw
    yield "png", encode(decode(raw), "png")
    yield "tiff", tiff(pixels)
    yield "tiff, deflated", tiff(pixels, compression="zlib")
    if pixels.dtype == np.uint16:
        yield "dicom", file_of(dataset_of(pixels))


def milliseconds(run: Callable[[], object]) -> float:
    """CPU time of the fastest of several runs."""
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return 1000 * min(taken)


def libpng(pixels: np.ndarray) -> bytes:
    """libpng's fastest compression."""
    png = imagecodecs.PNG
    return bytes(imagecodecs.png_encode(pixels, 1, strategy=png.STRATEGY.RLE, filter=png.FILTER.SUB))


def rows(side: int, dtype: type) -> Iterator[str]:
    """Lines of the table for one image."""
    pixels = grainy(side, dtype)
    size = f"{side} x {side}, {8 * pixels.itemsize} bit"
    for name, data in files_of(pixels):
        image = decode(data)
        derivation = DENOISE if name == "dicom" else None
        answer = encode(image, None, derivation)
        reading, writing = milliseconds(partial(decode, data)), milliseconds(partial(encode, image, None, derivation))
        yield f"| {size} | {name} | {reading:.2f} | {writing:.2f} | {len(answer) / pixels.nbytes:.3f} |"
    share = len(libpng(pixels)) / pixels.nbytes
    yield f"| {size} | libpng alone | | {milliseconds(partial(libpng, pixels)):.2f} | {share:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time and size of every format.")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 2048])
    options = parser.parse_args()
    print("| image | format | decode, ms | encode, ms | share of the raw size |\n| --- | --- | --- | --- | --- |")
    for side in options.sides:
        for dtype in (np.uint8, np.uint16):
            print(*rows(side, dtype), sep="\n", flush=True)


if __name__ == "__main__":
    main()
