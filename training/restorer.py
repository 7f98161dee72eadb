"""Ways to have an image restored for evaluation: a bundle in this process, or a running service."""

from __future__ import annotations

import io
import json
import os
import urllib.request
from typing import Any, Protocol

import numpy as np
import tifffile

from models.bundle import Bundle
from models.imaging.codec import decode
from training.data.noise import Plane

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class Restorer(Protocol):
    """Restores planes (H, W) on the unit scale; `scale` times as large for super-resolution."""

    def restore(self, plane: Plane, *, eight_bit: bool = False) -> Plane: ...

    def noise_level(self, plane: Plane) -> float: ...


class LocalBundle:
    """Runs a bundle's ONNX graphs on whole images with ONNX Runtime."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.multiple = bundle.manifest.multiple
        self.sessions = {
            name: onnxruntime.InferenceSession(str(bundle.graph(name, "onnx")), options, ["CPUExecutionProvider"])
            for name in bundle.manifest.graphs
        }

    def run(self, graph: str, arrays: dict[str, Any]) -> Any:
        return self.sessions[graph].run(None, arrays)[0]

    def parameters(self, plane: Plane) -> Plane:
        """The noise parameters (1, 3) of a whole image."""
        found: Plane = self.run("estimate", {"image": plane[None, None]})
        return found

    def restore(self, plane: Plane, *, eight_bit: bool = False) -> Plane:
        del eight_bit  # nothing is encoded on the way
        arrays: dict[str, Any] = {"image": plane[None, None]}
        if "estimate" in self.sessions:
            arrays |= {"parameters": self.parameters(plane), "strength": np.ones(1, dtype=np.float32)}
        restored: Plane = self.run("restore", arrays)[0, 0]
        return restored

    def noise_level(self, plane: Plane) -> float:
        slope, offset, floor = self.parameters(plane)[0]
        return float(np.sqrt(np.maximum(slope * plane + offset, floor).clip(0).mean()))


class Service:
    """Sends images to a running service: float32 TIFF, or 8-bit PNG where the noise was clipped."""

    def __init__(self, url: str, task: str, model: str, scale: int, precision: str | None) -> None:
        query = f"model={model}" + (f"&scale={scale}" if task == "superresolve" else "")
        query += f"&precision={precision}" if precision else ""
        self.url, self.route = url.rstrip("/"), f"/{task}?{query}"
        self.analyze = f"/analyze?model={model}"

    def post(self, route: str, body: bytes) -> bytes:
        request = urllib.request.Request(self.url + route, data=body, method="POST")
        with urllib.request.urlopen(request, timeout=600) as answer:
            content: bytes = answer.read()
        return content

    def encode(self, plane: Plane, eight_bit: bool) -> bytes:
        buffer = io.BytesIO()
        if eight_bit:
            from PIL import Image

            Image.fromarray(np.rint(plane * 255).astype(np.uint8)).save(buffer, "PNG")
        else:
            tifffile.imwrite(buffer, plane)
        return buffer.getvalue()

    def restore(self, plane: Plane, *, eight_bit: bool = False) -> Plane:
        pixels = decode(self.post(self.route, self.encode(plane, eight_bit))).pixels[0, :, :, 0]
        return (pixels / np.float32(255)).astype(np.float32) if eight_bit else pixels.astype(np.float32)

    def noise_level(self, plane: Plane) -> float:
        report = json.loads(self.post(self.analyze, self.encode(plane, eight_bit=False)))
        return float(report["level"])
