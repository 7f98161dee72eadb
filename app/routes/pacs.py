"""`/pacs`: whole series of a PACS restored in the background and stored back into it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from app.jobs.store import State
from app.pacs.desk import Pacs, PacsJob
from app.pacs.instance import Instance, Outcome
from app.pacs.routing import Routing
from app.routes.body import SmallBody
from app.routes.documentation import JOB_EVENTS, PACS_ACCEPTED, PACS_PROBLEMS, PACS_STATUS
from app.routes.jobs import moment
from app.routes.stream import KEEP_ALIVE_S, follow
from app.schemas import (
    JobProblem,
    NoQuery,
    PacsCounts,
    PacsInstance,
    PacsInstanceList,
    PacsInstancesQuery,
    PacsJobList,
    PacsJobsQuery,
    PacsJobStatus,
    PacsPeerStatus,
    PacsRequest,
    PacsStatus,
)
from models.errors import OptionError

router = APIRouter(prefix="/pacs", tags=["pacs"], route_class=SmallBody)

RETRY_AFTER_S = 10


@router.post("/jobs", status_code=202, responses=PACS_ACCEPTED)
async def submit_pacs_job(
    request: Request, response: Response, body: PacsRequest, _: Annotated[NoQuery, Query()]
) -> PacsJobStatus:
    """Restores one series of a PACS and stores it there as a derived series of the same study.

    The same request is the same job, also at the same time. Where that job is completed, it lists the series
    again and adds what is new; where it failed or was cancelled, `retry` has it run again.
    """
    job, created = await pacs_of(request).submit(body)
    _note(request, job)
    response.status_code = 202 if created else 200
    response.headers["Location"] = f"{_base(request)}/{job.job.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return status_of(job, _base(request))


@router.get("/jobs", responses=PACS_PROBLEMS)
async def list_pacs_jobs(request: Request, query: Annotated[PacsJobsQuery, Query()]) -> PacsJobList:
    """The newest jobs, page by page."""
    before = None if query.cursor is None else _cursor(query.cursor)
    jobs = await pacs_of(request).page(query.limit, query.state, query.study, before)
    more = f"{jobs[-1].job.created!r}-{jobs[-1].job.id}" if len(jobs) == query.limit else None
    return PacsJobList(jobs=[status_of(job, _base(request)) for job in jobs], next=more)


@router.get("/jobs/{job_id}", responses=PACS_PROBLEMS)
async def get_pacs_job(request: Request, job_id: str, _: Annotated[NoQuery, Query()]) -> PacsJobStatus:
    """How a job is."""
    return status_of(await pacs_of(request).get(job_id), _base(request))


@router.get("/jobs/{job_id}/instances", responses=PACS_PROBLEMS)
async def list_pacs_instances(
    request: Request, job_id: str, query: Annotated[PacsInstancesQuery, Query()]
) -> PacsInstanceList:
    """What became of each instance of the source series."""
    found = await pacs_of(request).instances(job_id, query.limit, query.cursor, query.state)
    more = found[-1].position if len(found) == query.limit else None
    return PacsInstanceList(instances=[_instance(one) for one in found], next=more)


@router.post("/jobs/{job_id}/cancel", responses=PACS_PROBLEMS)
async def cancel_pacs_job(request: Request, job_id: str, _: Annotated[NoQuery, Query()]) -> PacsJobStatus:
    """Ends a job that has not ended. What it has stored stays in the PACS."""
    job = await pacs_of(request).cancel(job_id)
    _note(request, job)
    return status_of(job, _base(request))


@router.post("/jobs/{job_id}/retry", responses=PACS_PROBLEMS)
async def retry_pacs_job(request: Request, job_id: str, _: Annotated[NoQuery, Query()]) -> PacsJobStatus:
    """Has a job run now that has ended, waits or is blocked, and tries again what failed of it."""
    job = await pacs_of(request).retry(job_id)
    _note(request, job)
    return status_of(job, _base(request))


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse, responses=JOB_EVENTS)
async def watch_pacs_job(
    request: Request,
    job_id: str,
    _: Annotated[NoQuery, Query()],
    last_event_id: Annotated[str | None, Header(description="sent by browsers that come back")] = None,
) -> Response:
    """Server-sent events: the job as it is now, then after every change, until it has ended.

    An event is named by the job's state; its data is the document of `GET /pacs/jobs/{id}`.
    """
    pacs = pacs_of(request)
    job = (await pacs.get(job_id)).job
    if job.state.final and last_event_id == str(job.revision):
        return Response(status_code=204)
    base = _base(request)
    states = pacs.watch(job_id, KEEP_ALIVE_S)
    return follow(states, lambda found: (found.job.revision, found.state, status_of(found, base)))


@router.get("/status", responses=PACS_STATUS)
async def get_pacs_status(request: Request, _: Annotated[NoQuery, Query()]) -> PacsStatus:
    """Whether each PACS can be reached and lets the service in, how its jobs are, and what is out of order here."""
    found, problem = await pacs_of(request).status()
    routing: Routing = request.app.state.routing
    feeds = routing.feeds()
    peers = {name: PacsPeerStatus(**vars(status), feed=feeds.get(name)) for name, status in found.items()}
    return PacsStatus(pacs=peers, jobs_problem=problem, rules_problem=routing.problem, dimse_problem=routing.silence)


def pacs_of(request: Request) -> Pacs:
    pacs: Pacs = request.app.state.pacs
    return pacs


def status_of(found: PacsJob, base: str) -> PacsJobStatus:
    """The document of a job; `base` is the path of all jobs."""
    job, order, counts = found.job, found.order, found.counts
    total = sum(counts.values())
    denoise = {"strength": order.strength, "sigma": order.sigma}
    chosen = denoise if order.operation == "denoise" else {"min_consistency": order.min_consistency}
    return PacsJobStatus(
        id=job.id,
        state=found.state,  # type: ignore[arg-type]
        pacs=order.pacs,
        study=order.study,
        series=order.series,
        operation=order.operation,
        scale=order.scale,
        model=order.model,
        model_digest=order.digest,
        options={**chosen, "precision": order.precision},
        derived_series=found.series,
        instances=PacsCounts(total=total, **{state.value: count for state, count in counts.items()}),
        progress=(total - counts[Outcome.PENDING]) / total if total else 0.0,
        attempts=job.attempts,
        created=moment(job.created),
        started=moment(job.started),
        finished=moment(job.finished),
        next_try=moment(job.due) if job.state is State.QUEUED and job.phase else None,
        waiting_since=moment(job.waiting_since),
        problem=JobProblem(**job.problem) if job.problem else None,
        events=f"{base}/{job.id}/events",
    )


def _note(request: Request, found: PacsJob) -> None:
    """What the logs tell of a request."""
    instances = sum(found.counts.values())
    request.scope["facts"] = {"job": found.job.id, "pacs": found.order.pacs, "instances": instances}


def _instance(found: Instance) -> PacsInstance:
    return PacsInstance(
        source=found.source,
        derived=found.derived or None,
        state=found.state.value,
        reason=found.reason,
        consistency_psnr=found.consistency,
    )


def _cursor(text: str) -> tuple[float, str]:
    """Raises OptionError."""
    created, _, id = text.partition("-")
    try:
        return float(created), id
    except ValueError:
        raise OptionError("cursor must be the `next` of a page") from None


def _base(request: Request) -> str:
    """The path of all jobs as the caller reached it, `/v1` or none before it."""
    return request.url.path.partition("/pacs/jobs")[0] + "/pacs/jobs"
