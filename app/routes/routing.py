"""`/pacs/route` and `/pacs/events/orthanc`: what the rules do, and a PACS that calls for attention."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.pacs.candidate import TAGS, Candidate
from app.pacs.errors import PacsError
from app.pacs.report import RoutedPacs, RoutedSeries, RouteQuery, RouteReport
from app.pacs.router import Router, Verdict
from app.pacs.routing import Routing
from app.routes.documentation import PACS_PROBLEMS
from models.errors import OptionError

router = APIRouter(prefix="/pacs", tags=["pacs"])


@router.post("/events/orthanc", status_code=202, response_class=Response, responses=PACS_PROBLEMS)
async def hear_orthanc(request: Request) -> Response:
    """Has the feeds of changes read now. What is sent is not read: the feed alone tells what is new."""
    routing_of(request).the_router().wake()
    return Response(status_code=202, headers={"Connection": "close"})  # the body is left unread


@router.get("/route", responses=PACS_PROBLEMS)
async def try_rules(request: Request, query: Annotated[RouteQuery, Query()]) -> RouteReport:
    """What the rules would take of the newest series, and why not the others. Nothing is started."""
    found = routing_of(request).the_router()
    if query.pacs is not None and query.pacs not in found.feeds:
        raise OptionError(f"no such PACS; there are: {', '.join(sorted(found.feeds))}")
    names = [query.pacs] if query.pacs is not None else list(found.feeds)
    rules = found.rulebook.rules()
    told = [await _report(found, name, query.limit) for name in names]
    return RouteReport(problem=found.rulebook.problem, routes=[route.name for route in rules.route], pacs=told)


def routing_of(request: Request) -> Routing:
    """What routes here; see `Routing` for where nothing does."""
    routing: Routing = request.app.state.routing
    return routing


async def _report(found: Router, pacs: str, limit: int) -> RoutedPacs:
    try:
        series = await found.recent(pacs, limit)
    except PacsError as error:
        return RoutedPacs(pacs=pacs, problem=str(error), series=[])
    return RoutedPacs(pacs=pacs, problem=None, series=[_row(*row) for row in series])


def _row(candidate: Candidate, verdict: Verdict) -> RoutedSeries:
    return RoutedSeries(
        study=candidate.study,
        series=candidate.series,
        instances=candidate.instances,
        tags={tag: text for tag in TAGS if (text := candidate.tag(tag))},
        decision=verdict.decision,
        route=None if verdict.route is None else verdict.route.name,
        reason=verdict.reason,
        unmet=verdict.unmet,
    )
