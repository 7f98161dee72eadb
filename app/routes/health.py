"""`GET /healthz/live`, `/healthz/ready` and `/metrics`: for orchestrators and Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.errors import NotReady
from app.routes.documentation import READY_PROBLEM
from app.schemas import Health
from app.service import Service

router = APIRouter(tags=["operation"])


@router.get("/healthz/live")
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/healthz/ready", responses={503: READY_PROBLEM})
async def ready(request: Request) -> Health:
    """A worker has loaded and self-tested its models; otherwise, and while it drains, 503 with the reason."""
    service: Service = request.app.state.service
    if request.app.state.draining:
        raise NotReady("the service is shutting down")
    if service.engine.reason is not None:
        raise NotReady(service.engine.reason)
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus text format, base units."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
