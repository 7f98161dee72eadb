"""What the routes that take an image share: receiving it, and saying so in OpenAPI."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request

from app.body import FIELD, Upload, declared_bytes, read_upload
from app.hangup import unless_gone
from app.problem import MEDIA_TYPE
from app.schemas import Problem
from app.service import Job, Service
from models.imaging.codec import MEDIA_TYPES, OUTPUTS

T = TypeVar("T")

BINARY = {"type": "string", "format": "binary"}
FORM = {"type": "object", "required": [FIELD], "properties": {FIELD: {**BINARY, "description": "the image file"}}}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image: DICOM, PNG, TIFF, JPEG or NPY, as the body itself (whatever its type says) "
        f"or as the form field `{FIELD}`. The content decides the format.",
        "content": {
            "multipart/form-data": {"schema": FORM},
            **{media_type: {"schema": BINARY} for media_type in MEDIA_TYPES.values()},
            "application/octet-stream": {"schema": BINARY},
        },
    }
}

_TEXT = {"schema": {"type": "string"}}


def _header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "example": example, **_TEXT}


HEADERS = {
    "X-Model": _header("model that answered, name@version", "denoise@1"),
    "X-Model-Digest": _header("SHA-256 of its manifest", "9f2c..."),
    "X-Backend": _header("runtime", "onnx"),
    "X-Precision": _header("number format of the computation", "fp32"),
    "X-Noise-Before": _header("RMS noise that was found; denoising only, as the next six", "21.3"),
    "X-Noise-After": _header("RMS noise estimated in the answer", "3.1"),
    "X-Noise-Unit": _header("real-world unit of these numbers", "HU"),
    "X-Removed-RMS": _header("RMS of the change", "20.9"),
    "X-Removed-Max": _header("largest change of one sample", "118"),
    "X-In-Trained-Range": _header("whether the model was trained on such a noise level", "true"),
    "X-Clip-Count": _header("samples cut to the storable range", "0"),
    "Content-Digest": _header("SHA-256 of the body (RFC 9530)", "sha-256=:...:"),
    "Server-Timing": _header("milliseconds by stage", "decode;dur=2.1, restore;dur=83.0, total;dur=95.2"),
    "X-Request-Id": _header("the caller's, or a new one", "6d1f5c0e"),
}
_PROBLEM = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}, "model": Problem}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is empty, or not one image", **_PROBLEM},
    404: {"description": "No such model", **_PROBLEM},
    413: {"description": "Over a limit of bytes, pixels or frames", **_PROBLEM},
    415: {"description": "Not a format that is read here", **_PROBLEM},
    422: {"description": "A damaged or unsupported image, or an option out of range or unknown", **_PROBLEM},
    429: {"description": "Too much work is waiting; see Retry-After", **_PROBLEM},
    503: {"description": "No worker or no model is ready", **_PROBLEM},
    504: {"description": "Not done in time", **_PROBLEM},
}
IMAGE_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The restored image",
        "headers": HEADERS,
        "content": {MEDIA_TYPES[format]: {"schema": BINARY} for format in OUTPUTS},
    },
    406: {
        "description": "The image cannot be written as any accepted type; `available` lists those it can",
        **_PROBLEM,
    },
    **PROBLEMS,
}


async def exchange(
    request: Request, job: Job, work: Callable[[Job, Upload], Coroutine[Any, Any, T]]
) -> tuple[T, float]:
    """Receives the image and does `work` on it while the caller waits; gives the result and the seconds
    of receiving. What can be refused without the body is refused before it is read."""
    service: Service = request.app.state.service
    limit = service.settings.limit_bytes
    service.check(job)
    with service.gate.enter(declared_bytes(request, limit), max(1.0, service.engine.backlog_s)):
        start = time.perf_counter()
        upload = await read_upload(request, limit)
        receive_s = time.perf_counter() - start
        request.scope["facts"] = {"request_bytes": len(upload.data), "receive_s": round(receive_s, 4)}
        result = await unless_gone(request.receive, work(job, upload))
    return result, receive_s


def server_timing(timings: Mapping[str, float]) -> str:
    """`Server-Timing` in milliseconds; the sum counts what follows one another, not the queue's own two."""
    total = sum(seconds for stage, seconds in timings.items() if stage not in ("queue", "run"))
    return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in {**timings, "total": total}.items())
