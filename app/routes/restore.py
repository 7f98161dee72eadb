"""`POST /denoise` and `POST /superresolve`: an image in, an image out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from app.pipeline import Options
from app.routes.documentation import IMAGE_ANSWER, IMAGE_BODY
from app.routes.exchange import exchange, server_timing
from app.schemas import CallHeaders, DenoiseQuery, SuperresolveQuery
from app.service import Job, Product
from models.imaging.correlation import NoiseCorrelation

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
    job = Job("denoise", 1, query.model, options, query.precision, request.headers.get("accept"))
    return _answer(*await exchange(request, job, call, request.app.state.service.restore))


@router.post("/superresolve", openapi_extra=IMAGE_BODY, responses=IMAGE_ANSWER, response_class=Response)
async def superresolve(
    request: Request, query: Annotated[SuperresolveQuery, Query()], call: Annotated[CallHeaders, Header()]
) -> Response:
    """Doubles or quadruples the rows and columns of one image; spacing and position follow."""
    scale = int(query.scale)
    job = Job("superresolve", scale, query.model, Options(), query.precision, request.headers.get("accept"))
    return _answer(*await exchange(request, job, call, request.app.state.service.restore))


def _answer(product: Product, receive_s: float) -> Response:
    evidence, making = product.evidence, product.making
    facts = {
        "X-Model": making.bundle.reference,
        "X-Model-Digest": making.bundle.digest,
        "X-Backend": making.backend,
        "X-Precision": making.precision,
        "X-Noise-Before": _number(evidence.noise_before),
        "X-Noise-After": _number(evidence.noise_after),
        "X-Noise-Correlation": _numbers(_lags(evidence.noise_correlation)),
        "X-Removed-RMS": _number(evidence.removed_rms),
        "X-Removed-Max": _number(evidence.removed_max),
        "X-Removed-Correlation": _numbers(evidence.removed_correlation),
        "X-In-Trained-Range": None if evidence.in_trained_range is None else str(evidence.in_trained_range).lower(),
        "X-Noise-Unit": _word(evidence.unit),
        "X-Clip-Count": str(evidence.clipped),
        "X-Input-Lossy": str(making.lossy).lower(),
        "X-Input-Notes": "; ".join(making.notes) or None,
        "X-Queue-Position": str(making.position),
        "X-Queue-Seconds": f"{making.wait_s:.3f}",
        "X-Cache": making.cache,
        "Content-Digest": product.content_digest,
        "Server-Timing": server_timing({"receive": receive_s, **making.timings}),
        "Vary": "Accept",
    }
    headers = {name: value for name, value in facts.items() if value is not None}
    return Response(product.data, headers=headers, media_type=product.media_type)


def _lags(correlation: NoiseCorrelation | None) -> tuple[float, ...] | None:
    return (correlation.x1, correlation.y1, correlation.x2, correlation.y2) if correlation else None


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _numbers(values: tuple[float, ...] | None) -> str | None:
    return None if values is None else ", ".join(f"{value:.3f}" for value in values)


def _word(unit: str) -> str:
    """A unit out of a file, as far as a header may hold it (RFC 9110, section 5.5)."""
    return "".join(c for c in unit if " " <= c <= "~").strip() or "unnamed"
