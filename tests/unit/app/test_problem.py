"""Every deliberate error has one HTTP status, and a problem document says it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from starlette.requests import Request

from app.errors import STATUSES, InvalidBody, NotAcceptable, NotReady, QueueFull
from app.problem import MEDIA_TYPE, of_error, of_unexpected
from models.errors import ImageTooLarge, MedRestoreError, UnsupportedImage


def tree(root: type[MedRestoreError]) -> Iterator[type[MedRestoreError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def request() -> Request:
    return Request({"type": "http", "method": "POST", "path": "/", "headers": [], "request_id": "r-1"})


@pytest.mark.parametrize(
    "error", [c for c in tree(MedRestoreError) if c.__module__ in ("app.errors", "app.pacs.errors", "models.errors")]
)
def test_every_error_has_its_own_row(error: type[MedRestoreError]) -> None:
    assert error in STATUSES, f"give {error.__name__} a row in app.errors.STATUSES"
    assert STATUSES[error].code >= 400


def test_no_module_of_the_product_hides_an_error_elsewhere() -> None:
    strangers = {c for c in tree(MedRestoreError) if c.__module__.split(".")[0] in ("app", "models")} - set(STATUSES)
    assert not strangers


def test_slugs_tell_errors_apart() -> None:
    assert [slug for slug, count in Counter(s.slug for s in STATUSES.values()).items() if count > 1] == []


def test_a_problem_has_the_members_of_the_standard() -> None:
    response = of_error(request(), UnsupportedImage("alpha", "the alpha channel is not opaque"))
    body = json.loads(response.body)
    assert response.status_code == body["status"] == 422
    assert response.media_type == MEDIA_TYPE
    assert body["type"] == "urn:medrestore:problem:unsupported-image"
    assert body["detail"] == "the alpha channel is not opaque"
    assert body["instance"].endswith("r-1")
    assert body["reason"] == "alpha"


def test_overload_says_when_to_come_back() -> None:
    response = of_error(request(), QueueFull("pixels", 3.2))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "4")
    assert json.loads(response.body)["reason"] == "pixels"
    assert "Retry-After" in of_error(request(), NotReady("starting")).headers
    assert "Retry-After" not in of_error(request(), InvalidBody("empty")).headers


def test_an_unread_body_closes_the_connection() -> None:
    assert of_error(request(), ImageTooLarge("too large")).headers["Connection"] == "close"


def test_what_can_be_had_is_listed() -> None:
    body = json.loads(of_error(request(), NotAcceptable(["image/tiff"])).body)
    assert (body["status"], body["available"]) == (406, ["image/tiff"])


def test_the_unforeseen_tells_nothing_but_its_id() -> None:
    response = of_unexpected("r-2")
    assert response.status_code == 500
    assert b"r-2" in response.body
