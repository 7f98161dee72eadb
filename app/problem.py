"""Errors as answers: `application/problem+json` (RFC 9457), whatever went wrong.

Members beyond the standard five: `request_id` always; `reason`, `available`, `errors`, `measured_db`,
`required_db` and `retry_after_s` where they apply. A problem never repeats what was in an image: no pixel values, no
text out of a DICOM header, no file name.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from app.errors import QueueFull, RangeRefused, Status, status_of
from models.errors import MedRestoreError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:medrestore:problem:"
INTERNAL = Status(500, "internal", "Internal error")
INVALID_OPTION = Status(422, "invalid-option", "Option out of range or contradictory")
UNREAD = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.INSUFFICIENT_STORAGE)
RETRY_LATER_S = 5.0  # for 503, where no better estimate exists


def body_of(request_id: str, status: Status, detail: str, **more: Any) -> dict[str, Any]:
    """The members of one problem document; those of `more` that are None are left out."""
    return _members(f"urn:medrestore:request:{request_id}", status, detail, request_id=request_id, **more)


def of_job(job_id: str, error: MedRestoreError) -> dict[str, Any]:
    """What a failed job tells: the document that a request would have got."""
    return _members(f"urn:medrestore:job:{job_id}", status_of(error), str(error), **_details(error))


def of_job_unexpected(job_id: str) -> dict[str, Any]:
    """What a job tells that failed for a reason nobody foresaw."""
    text = "an error inside the service; its log names the place by this job's id"
    return _members(f"urn:medrestore:job:{job_id}", INTERNAL, text)


def _members(instance: str, status: Status, detail: str, **more: Any) -> dict[str, Any]:
    standard = {
        "type": TYPE_PREFIX + status.slug,
        "title": status.title,
        "status": status.code,
        "detail": detail,
        "instance": instance,
    }
    return standard | {key: value for key, value in more.items() if value is not None}


def _details(error: MedRestoreError) -> dict[str, Any]:
    return {name: getattr(error, name, None) for name in ("reason", "available", "measured_db", "required_db")}


def problem(
    request_id: str, status: Status, detail: str, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    """One problem document as a response."""
    body = body_of(request_id, status, detail, **more)
    return Response(json.dumps(body), status.code, headers, media_type=MEDIA_TYPE)


def id_of(request: Request) -> str:
    """The request's id, set by `app.middleware.Monitor`."""
    return str(request.scope.get("request_id", "none"))


def of_error(request: Request, error: MedRestoreError) -> Response:
    """Answers any deliberate error by its row in `STATUSES`."""
    status = status_of(error)
    wait_s = getattr(error, "retry_after_s", RETRY_LATER_S if status.code == HTTPStatus.SERVICE_UNAVAILABLE else None)
    headers = dict(getattr(error, "headers", {}))
    if wait_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    if isinstance(error, QueueFull):
        headers |= {"X-Queue-Position": str(error.position), "X-Queue-Seconds": f"{error.wait_s:.3f}"}
    if isinstance(error, RangeRefused):
        headers["Content-Range"] = f"bytes */{error.size}"
    if status.code in UNREAD:
        headers["Connection"] = "close"  # the rest of the body was not read
    request.scope["problem"] = status.slug
    return problem(id_of(request), status, str(error), headers, retry_after_s=wait_s, **_details(error))


def of_validation(request: Request, error: RequestValidationError) -> Response:
    """Answers options that do not fit their declaration, unknown ones included, without their values."""
    errors = [{"option": ".".join(map(str, item["loc"][1:])), "message": item["msg"]} for item in error.errors()]
    detail = "; ".join(f"{item['option']}: {item['message']}" for item in errors)
    request.scope["problem"] = INVALID_OPTION.slug
    return problem(id_of(request), INVALID_OPTION, detail, errors=errors)


def of_http(request: Request, error: HTTPException) -> Response:
    """Answers 404, 405 and the like, which the router raises, and 400, for a body that is no text or no JSON."""
    phrase = HTTPStatus(error.status_code).phrase
    status = Status(error.status_code, phrase.lower().replace(" ", "-"), phrase)
    request.scope["problem"] = status.slug
    unread = error.status_code == HTTPStatus.BAD_REQUEST
    detail = "the body cannot be parsed" if unread else f"nothing answers {request.method} at this path"
    return problem(id_of(request), status, detail, dict(error.headers or {}))


def of_protocol(found: Response) -> Response:
    """The same refusal as the Open Inference Protocol writes it."""
    kept = {name: value for name, value in found.headers.items() if name not in ("content-type", "content-length")}
    return JSONResponse({"error": json.loads(bytes(found.body))["detail"]}, found.status_code, kept)


def of_unexpected(request_id: str) -> Response:
    """Answers an error nobody foresaw; the log has its place, the caller only the request id."""
    return problem(request_id, INTERNAL, "an error inside the service; its log names the place by this request id")


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem document (unforeseen ones: `app.middleware.Monitor`)."""
    app.add_exception_handler(MedRestoreError, of_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, of_validation)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, of_http)  # type: ignore[arg-type]
