"""`POST /denoise` and `POST /superresolve`: an image in, an image out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.facts import facts_of, headers_of
from app.pipeline import Options
from app.routes.documentation import IMAGE_ANSWER, IMAGE_BODY
from app.routes.exchange import exchange, server_timing
from app.schemas import DenoiseQuery, SuperresolveQuery
from app.service import Job, Product

router = APIRouter(tags=["images"])


@router.post("/denoise", openapi_extra=IMAGE_BODY, responses=IMAGE_ANSWER, response_class=Response)
async def denoise(request: Request, query: Annotated[DenoiseQuery, Query()]) -> Response:
    """Removes noise from one image, and nothing else: size, type and units stay as they are.

    The noise level is estimated unless `sigma` gives it. Colour planes share one estimate. The
    answer comes in the image's own format, or the one that `Accept` asks for.
    """
    options = Options(query.strength, query.sigma)
    job = Job("denoise", 1, query.model, options, query.precision, request.headers.get("accept"))
    return _answer(*await exchange(request, job, request.app.state.service.restore))


@router.post("/superresolve", openapi_extra=IMAGE_BODY, responses=IMAGE_ANSWER, response_class=Response)
async def superresolve(request: Request, query: Annotated[SuperresolveQuery, Query()]) -> Response:
    """Doubles or quadruples the rows and columns of one image; spacing and position follow."""
    scale = int(query.scale)
    job = Job("superresolve", scale, query.model, Options(), query.precision, request.headers.get("accept"))
    return _answer(*await exchange(request, job, request.app.state.service.restore))


def _answer(product: Product, receive_s: float) -> Response:
    making = product.making
    facts = facts_of(product.evidence, making.bundle, making.backend, making.precision, making.lossy, making.notes)
    headers = {
        **headers_of(facts),
        "Content-Digest": product.content_digest,
        "Server-Timing": server_timing({"receive": receive_s, **making.timings}),
        "Vary": "Accept",
    }
    return Response(product.data, headers=headers, media_type=product.media_type)
