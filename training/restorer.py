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
from models.networks.denoiser import LEVEL, PARAMETERS, PEDESTAL
from training.data.noise import NoiseLaw, Plane

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class Restorer(Protocol):
    """Restores planes (H, W) on the unit scale; `scale` times as large for super-resolution."""

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        """The restored plane; with `law` told the true noise, without it from its own estimate.

        `eight_bit` says that the plane holds whole 255ths, so that it may travel as such.
        """
        ...

    def noise_level(self, plane: Plane) -> float:
        """Estimated root mean square of the noise, unit scale."""
        ...


class LocalBundle:
    """Runs a bundle's ONNX graphs on whole images with ONNX Runtime; `threads` 0 leaves the number to it."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.parameters = bundle.manifest.parameters
        self.sessions = {
            name: onnxruntime.InferenceSession(str(bundle.graph(name, "onnx")), options, ["CPUExecutionProvider"])
            for name in bundle.manifest.graphs
        }

    def run(self, graph: str, arrays: dict[str, Any]) -> Any:
        return self.sessions[graph].run(None, arrays)[0]

    def estimate(self, plane: Plane) -> Plane:
        """The noise parameters (1, P) of a whole image, in the manifest's order."""
        found: Plane = self.run("estimate", {"image": plane[None, None]})
        return found

    def told(self, law: NoiseLaw, plane: Plane) -> Plane:
        """A known law as parameters (1, P), by name: a bundle that knows no colour is not told any."""
        known = dict(zip(PARAMETERS, law.parameters, strict=True)) | {PEDESTAL: plane.mean()}
        return np.array([[known[name] for name in self.parameters]], dtype=np.float32)

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        del eight_bit  # nothing is encoded on the way
        arrays: dict[str, Any] = {"image": plane[None, None]}
        if "estimate" in self.sessions:
            parameters = self.estimate(plane) if law is None else self.told(law, plane)
            arrays |= {"parameters": parameters, "strength": np.ones(1, dtype=np.float32)}
        restored: Plane = self.run("restore", arrays)[0, 0]
        return restored

    def noise_level(self, plane: Plane) -> float:
        named = dict(zip(self.parameters, self.estimate(plane)[0], strict=True))
        slope, offset, floor = (named[name] for name in LEVEL)
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

    def restore(self, plane: Plane, *, eight_bit: bool = False, law: NoiseLaw | None = None) -> Plane:
        """As `Restorer.restore`. Raises ValueError for a law that is not white: the service takes one number."""
        route = self.route
        if law is not None:
            if law.slope or law.kernel is not None or law.rician:
                raise ValueError("a service can be told the level of white noise, no other law")
            route += f"&sigma={law.offset**0.5 * (255 if eight_bit else 1)!r}"
        pixels = decode(self.post(route, self.encode(plane, eight_bit))).pixels[0, :, :, 0]
        return (pixels / np.float32(255)).astype(np.float32) if eight_bit else pixels.astype(np.float32)

    def noise_level(self, plane: Plane) -> float:
        report = json.loads(self.post(self.analyze, self.encode(plane, eight_bit=False)))
        return float(report["level"])
