"""What the servers that are compared with ours run: the same ONNX files, this product's own codec and value maps.

They run estimate, restore and estimate as the service does, one onnxruntime thread, one run at a time. An image is
padded to the network's grid alone, since nothing asks them for tiles. They check, bound and report nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from app.backends.base import Backend, load
from models.bundle import find_bundle
from models.imaging.codec import decode, encode
from models.imaging.image import Image
from models.imaging.values import from_unit, to_unit

Array = np.ndarray[Any, Any]


class Denoiser:
    """Decoding, the network and encoding, as any server would call them."""

    def __init__(self, repository: Path, model: str) -> None:
        bundle = find_bundle(repository, model)
        self._multiple = bundle.manifest.multiple
        self._backend: Backend = load("onnx", bundle, "cpu", "fp32", threads=1)

    def decode(self, data: bytes) -> tuple[Image, Array]:
        """The image, and its plane (1, 1, rows, columns) padded to the grid."""
        image = decode(data)
        plane = to_unit(image)[0][None]
        pads = [(0, -side % self._multiple) for side in plane.shape[2:]]
        return image, np.pad(plane, [(0, 0), (0, 0), *pads], "reflect")

    def run(self, plane: Array) -> Array:
        parameters = self._backend.run("estimate", {"image": plane})["parameters"]
        inputs = {"image": plane, "parameters": parameters, "strength": np.ones(1, np.float32)}
        restored = self._backend.run("restore", inputs)["restored"]
        self._backend.run("estimate", {"image": restored})
        return restored

    def encode(self, image: Image, restored: Array) -> bytes:
        rows, columns = image.pixels.shape[1:3]
        return encode(from_unit(restored[:, :, :rows, :columns], image)[0], "png")


def read_options() -> argparse.Namespace:
    """Of a rival's own program."""
    parser = argparse.ArgumentParser(description="Serves a bundle's ONNX files by another server.")
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--model", default="light")
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()
