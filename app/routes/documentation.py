"""What OpenAPI says about bodies, headers and problems beyond what FastAPI finds out by itself."""

from __future__ import annotations

from typing import Any

from app.body import FIELD
from app.errors import (
    STATUSES,
    DeadlineExceeded,
    DiskFull,
    InvalidBody,
    JobNotFound,
    JobsUnavailable,
    NoResult,
    NotAcceptable,
    NotReady,
    PacsOff,
    QueueFull,
    RangeRefused,
    RunFailed,
    UploadStalled,
)
from app.problem import MEDIA_TYPE, body_of
from app.schemas import PacsJobStatus, Problem
from models.errors import (
    BundleNotFound,
    CorruptImage,
    ImageTooLarge,
    MedRestoreError,
    OptionError,
    UnknownFormat,
)
from models.imaging.codec import MEDIA_TYPES, OUTPUTS

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
    "X-Model-Adversarial": _header(
        "`true` where the model was trained against a critic: the answer may show texture that was not in the image, "
        "and is not for measurement; else absent",
        "true",
    ),
    "X-Backend": _header("runtime", "onnx"),
    "X-Precision": _header("number format of the computation", "fp32"),
    "X-Noise-Before": _header("RMS noise that was found; denoising only, as the next six", "21.3"),
    "X-Noise-After": _header("RMS noise estimated in the answer", "3.1"),
    "X-Noise-Correlation": _header(
        "correlation of the noise that was found, one pixel across, one down, two across, two down; "
        "where the model's estimator tells it",
        "0.412, 0.320, 0.061, -0.010",
    ),
    "X-Removed-RMS": _header("RMS of the change", "20.9"),
    "X-Removed-Max": _header("largest change of one sample", "118"),
    "X-Removed-Correlation": _header(
        "correlation of the change, one pixel across and one down; absent where nothing changed", "0.398, 0.311"
    ),
    "X-In-Trained-Range": _header(
        "whether the model was trained on noise of such a level and, where its estimator tells that, correlation",
        "true",
    ),
    "X-Consistency-PSNR": _header(
        "of the answer, reduced again, beside the image; dB, peak is the frame's own range of measured values; of "
        "several frames the worst; 120 is equality; superresolve only, as the next two",
        "52.4",
    ),
    "X-Consistency-RMS": _header("RMS difference of the two, over all frames", "4.1"),
    "X-Consistency-Max": _header("largest difference of the two in one sample", "37"),
    "X-Noise-Unit": _header("real-world unit of levels, changes and differences", "HU"),
    "X-Clip-Count": _header("samples cut to the storable range", "0"),
    "X-Input-Lossy": _header("whether the image that was sent had gone through lossy compression (JPEG, ...)", "false"),
    "X-Input-Notes": _header("what decoding changed, where anything", "palette replaced by grey values"),
    "X-Queue-Position": _header("requests that were being worked on when this one was admitted; 429 tells it too", "3"),
    "X-Queue-Seconds": _header("estimate, then, of how long those would take; 429 tells it too", "0.412"),
    "X-Cache": _header("`hit`, `miss` or `joined` (equal request under way); where answers are kept", "miss"),
    "Content-Digest": _header("SHA-256 of the body (RFC 9530)", "sha-256=:...:"),
    "Server-Timing": _header("milliseconds by stage", "decode;dur=2.1, restore;dur=83.0, total;dur=95.2"),
    "X-Request-Id": _header("the caller's, or a new one", "6d1f5c0e"),
}


def _problem(description: str, error: type[MedRestoreError], detail: str, **more: Any) -> dict[str, Any]:
    """One documented problem, with an example of the class that it mostly is."""
    status = STATUSES[error]
    example = body_of("6d1f5c0e", status, detail, **more)
    return {"description": description, "model": Problem, "content": {MEDIA_TYPE: {"example": example}}}


OPTION_PROBLEM = _problem(
    "An option is out of range, contradicts another, or is unknown",
    OptionError,
    "foo: Extra inputs are not permitted",
    errors=[{"option": "foo", "message": "Extra inputs are not permitted"}],
)
READY_PROBLEM = _problem("No worker or no model is ready", NotReady, "no worker is ready: cpu starting")
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("The body is not one image", InvalidBody, "the field 'file' is empty"),
    404: _problem("No such model", BundleNotFound, "no model 'denoise@9'; available: denoise@1"),
    408: _problem("The body stopped coming", UploadStalled, "nothing of the body has come for 60 s; send it again"),
    413: _problem("Over a limit", ImageTooLarge, "the body is larger than the limit of 268435456 bytes"),
    415: _problem(
        "Not a format that is read here", UnknownFormat, "the file is none of DICOM, PNG, TIFF, JPEG and NPY"
    ),
    422: _problem("A damaged or unsupported image, or a bad option", CorruptImage, "the PNG file ends early"),
    429: _problem("Too much waits; see Retry-After", QueueFull, "the queue is full (pixels)", retry_after_s=4),
    502: _problem("The model failed on this image", RunFailed, "the model gave values that are no numbers"),
    503: READY_PROBLEM,
    504: _problem("Not done in time", DeadlineExceeded, "the deadline passed before the work was done"),
}
IMAGE_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The restored image",
        "headers": HEADERS,
        "content": {MEDIA_TYPES[format]: {"schema": BINARY} for format in OUTPUTS},
    },
    406: _problem(
        "The image cannot be written as any accepted type",
        NotAcceptable,
        "this image can be answered as image/png; Accept names none of them",
        available=["image/png"],
    ),
    **PROBLEMS,
}
_NO_JOB = _problem("No such job", JobNotFound, "no such job; it was deleted, or its time to be kept is over")
_NO_JOBS = _problem("Jobs are switched off here", JobsUnavailable, "jobs are switched off here: set `jobs` to a folder")
_DISK_FULL = _problem("No room for the job's files", DiskFull, "the jobs' disk is full", retry_after_s=60)
JOB_PROBLEMS: dict[int | str, dict[str, Any]] = {404: _NO_JOB, 422: OPTION_PROBLEM, 503: _NO_JOBS}
JOB_DELETED: dict[int | str, dict[str, Any]] = {**JOB_PROBLEMS}
JOB_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The job is on the disk, and will be done",
        "headers": {
            "Location": _header("path of the job", "/jobs/0b62..."),
            "Retry-After": _header("seconds until it is worth looking again", "5"),
        },
    },
    **{code: PROBLEMS[code] for code in (400, 404, 408, 413, 415, 422, 429, 503)},
    406: IMAGE_ANSWER[406],
    507: _DISK_FULL,
}
JOB_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events until the job has ended", "content": {"text/event-stream": _TEXT}},
    204: {"description": "The job has ended, and the caller has seen it"},
    **JOB_PROBLEMS,
}
JOB_RESULT: dict[int | str, dict[str, Any]] = {
    200: IMAGE_ANSWER[200],
    409: _problem(
        "The job has no result", NoResult, "the job is running: only a job that is done has a result", reason="running"
    ),
    416: _problem("No such part of the result", RangeRefused, str(RangeRefused(1000))),
    **JOB_PROBLEMS,
}
PACS_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: _NO_JOB,
    422: OPTION_PROBLEM,
    503: _problem(
        "No PACS, or no jobs, here", PacsOff, "no PACS is configured here: add a table `[pacs.NAME]` to the settings"
    ),
}
PACS_STATUS: dict[int | str, dict[str, Any]] = {code: PACS_PROBLEMS[code] for code in (422, 503)}
PACS_ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The job for the same request, which was there before", "model": PacsJobStatus},
    202: {
        "description": "The job is on the disk, and will be done",
        "headers": {
            "Location": _header("path of the job", "/pacs/jobs/0b62..."),
            "Retry-After": _header("seconds until it is worth looking again", "10"),
        },
    },
    **{code: PROBLEMS[code] for code in (404, 408, 413)},
    422: OPTION_PROBLEM,
    429: PROBLEMS[429],
    503: PACS_PROBLEMS[503],
}
STOW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One DICOM file (PS3.10) in each part, of type `application/dicom`.",
        "content": {"multipart/related": {"schema": BINARY}},
    }
}


def _stow_answer(description: str) -> dict[str, Any]:
    """The store instances response of PS3.18, section 10.5.3."""
    return {"description": description, "content": {"application/dicom+json": {"schema": {"type": "object"}}}}


STOW_ANSWER: dict[int | str, dict[str, Any]] = {
    200: _stow_answer("All instances are on the disk, and will be dealt with"),
    202: _stow_answer("Some instances are; the others are listed with the reasons of their failure"),
    409: _stow_answer("None is; each is listed with the reason of its failure"),
    **{code: PROBLEMS[code] for code in (400, 408, 413, 415, 422, 429)},
    406: IMAGE_ANSWER[406],
    503: PACS_PROBLEMS[503],
    507: _DISK_FULL,
}
