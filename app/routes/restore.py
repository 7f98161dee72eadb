"""`POST /denoise` and `POST /superresolve`: an image in, an image out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from app.facts import fact_headers, facts_of
from app.options import Options
from app.routes.documentation import IMAGE_ANSWER, IMAGE_BODY
from app.routes.exchange import exchange, server_timing
from app.schemas import CallHeaders, DenoiseQuery, SuperresolveQuery
from app.service import Job, Product

router = APIRouter(tags=["images"])


@router.post("/denoise", openapi_extra=IMAGE_BODY, responses=IMAGE_ANSWER, response_class=Response)
async def denoise(
    request: Request, query: Annotated[DenoiseQuery, Query()], call: Annotated[CallHeaders, Header()]
) -> Response:
    """Removes noise from one image, and nothing else: size, type and units stay as they are.

    The noise level is estimated unless `sigma` gives it. Colour planes share one estimate. The
    answer comes in the image's own format, or the one that `Accept` asks for.
    """
    options = Options(query.strength, query.sigma)
    job = Job("denoise", 1, query.model, options, False, query.precision, request.headers.get("accept"))
    return _answer(*await exchange(request, job, call, request.app.state.service.restore))


@router.post("/superresolve", openapi_extra=IMAGE_BODY, responses=IMAGE_ANSWER, response_class=Response)
async def superresolve(
    request: Request, query: Annotated[SuperresolveQuery, Query()], call: Annotated[CallHeaders, Header()]
) -> Response:
    """Doubles or quadruples the rows and columns of one image; spacing and position follow.

    The answer tells how well it agrees with the image: its stored pixels are reduced again (anti-aliased bicubic,
    aligned by pixel area) and compared, padding aside. `strict` refuses an answer that does not agree well enough.
    """
    options = Options(min_consistency=query.min_consistency)
    wanted = "superresolve", int(query.scale), query.model, options, query.strict, query.precision
    job = Job(*wanted, request.headers.get("accept"))
    return _answer(*await exchange(request, job, call, request.app.state.service.restore))


def _answer(product: Product, receive_s: float) -> Response:
    return Response(product.data, headers=headers_of(product, receive_s), media_type=product.media_type)


def headers_of(product: Product, receive_s: float) -> dict[str, str]:
    """What the headers of an answer tell."""
    making = product.making
    made = making.model, making.digest, making.adversarial, making.backend, making.precision
    headers = {
        **fact_headers(facts_of(product.evidence, *made, making.lossy, making.notes)),
        "X-Queue-Position": str(making.position),
        "X-Queue-Seconds": f"{making.wait_s:.3f}",
        "Content-Digest": product.content_digest,
        "Server-Timing": server_timing({"receive": receive_s, **making.timings}),
        "Vary": "Accept",
    }
    return headers if making.cache is None else headers | {"X-Cache": making.cache}
