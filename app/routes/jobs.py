"""`/jobs`: images restored in the background, frame by frame on the disk, across restarts of the service."""

from __future__ import annotations

import asyncio
import math
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from app.body import declared_bytes, save_upload
from app.errors import JobNotFound, JobsUnavailable, NoResult
from app.facts import fact_headers
from app.jobs.engine import JobEngine
from app.jobs.folder import private_file
from app.jobs.restoration import INPUT, KIND, RESULT, Wanted, bytes_needed
from app.jobs.store import Job, State
from app.negotiation import choose, formats_of
from app.offload import whole
from app.pipeline import check
from app.routes.documentation import (
    IMAGE_BODY,
    JOB_ACCEPTED,
    JOB_DELETED,
    JOB_EVENTS,
    JOB_PROBLEMS,
    JOB_RESULT,
)
from app.routes.download import Download, in_parts
from app.routes.exchange import refuse_repeated
from app.routes.stream import KEEP_ALIVE_S, follow
from app.schemas import JobList, JobProblem, JobQuery, JobsQuery, JobStatus, NoQuery, RestorationFacts
from app.service import Service
from models.bundle import Bundle
from models.errors import OptionError
from models.imaging.codec import OUTPUTS
from models.imaging.frames import open_frames

router = APIRouter(prefix="/jobs", tags=["jobs"])

KEY_LENGTH = 200
RETRY_LEAST_S, RETRY_MOST_S = 1.0, 60.0

Key = Annotated[str | None, Header(min_length=1, max_length=KEY_LENGTH, description="the same key gives the same job")]


@router.post("", status_code=202, openapi_extra=IMAGE_BODY, responses=JOB_ACCEPTED)
async def submit_job(
    request: Request, response: Response, query: Annotated[JobQuery, Query()], idempotency_key: Key = None
) -> JobStatus:
    """Takes one image, of hundreds of frames if need be, and restores it in the background.

    The body is written to disk as it comes. What can be told from the file's header is refused at
    once. An accepted job survives restarts of the service, and goes on at the first unfinished frame.
    """
    service, jobs = request.app.state.service, engine_of(request)
    refuse_repeated(request)
    asked = _asked(query, request.headers.get("accept"))
    job = await jobs.known(idempotency_key, KIND, asked) if idempotency_key else None
    if job:
        response.headers["Connection"] = "close"  # the body is left unread
    else:
        job = await _receive(request, service, jobs, asked, idempotency_key)
    request.scope["facts"] = {"job": job.id, "frames": job.total}
    response.headers.update(_headers(job))
    response.headers["Location"] = f"{_base(request)}/{job.id}"
    return status_of(job, _base(request))


@router.get("", responses=JOB_PROBLEMS)
async def list_jobs(request: Request, query: Annotated[JobsQuery, Query()]) -> JobList:
    """The newest jobs."""
    jobs = await engine_of(request).page(KIND, query.limit)
    return JobList(jobs=[status_of(job, _base(request)) for job in jobs])


@router.get("/{job_id}", responses=JOB_PROBLEMS)
async def get_job(request: Request, response: Response, job_id: str, _: Annotated[NoQuery, Query()]) -> JobStatus:
    """How a job is."""
    job = await _find(request, job_id)
    response.headers.update(_headers(job))
    return status_of(job, _base(request))


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=JOB_EVENTS)
async def watch_job(
    request: Request,
    job_id: str,
    _: Annotated[NoQuery, Query()],
    last_event_id: Annotated[str | None, Header(description="sent by browsers that come back")] = None,
) -> Response:
    """Server-sent events: the job as it is now, then after every change, until it has ended.

    An event is named by the job's state; its data is the document of `GET /jobs/{id}`. A client that
    comes back gets the present state at once, or 204 where it has seen the end.
    """
    job = await _find(request, job_id)
    if job.state.final and last_event_id == str(job.revision):
        return Response(status_code=204)
    base = _base(request)
    states = engine_of(request).watch(job_id, KEEP_ALIVE_S)
    return follow(states, lambda job: (job.revision, job.state, status_of(job, base)))


@router.get("/{job_id}/result", response_class=Download, responses=JOB_RESULT)
async def get_result(request: Request, job_id: str, _: Annotated[NoQuery, Query()]) -> Response:
    """The restored image, with the headers of `POST /denoise`; parts of it by `Range`."""
    job = await _find(request, job_id)
    if job.state is not State.DONE or job.outcome is None:
        raise NoResult(job.state, None if job.state.final else _retry_after_s(job))
    digest = job.outcome["content_digest"]
    headers = {**fact_headers(job.outcome["facts"]), "Repr-Digest": digest, "Cache-Control": "no-store"}
    if not in_parts(request.headers):
        headers["Content-Digest"] = digest
    path = engine_of(request).folder.of(job.id) / RESULT
    stat = await asyncio.to_thread(_stat, path)
    return Download(path, headers=headers, media_type=job.outcome["media_type"], stat_result=stat)


@router.delete("/{job_id}", status_code=204, responses=JOB_DELETED)
async def delete_job(request: Request, job_id: str, _: Annotated[NoQuery, Query()]) -> None:
    """Stops a job that has not ended (it is kept as cancelled, for those who watch it), and forgets one that has.
    Deletes its files."""
    await engine_of(request).delete((await _find(request, job_id)).id)


def engine_of(request: Request) -> JobEngine:
    """Raises JobsUnavailable."""
    jobs: JobEngine | str = request.app.state.jobs
    if isinstance(jobs, str):
        raise JobsUnavailable(jobs)
    return jobs


def status_of(job: Job, base: str) -> JobStatus:
    """The document of a job; `base` is the path of all jobs."""
    total = job.total or 0
    return JobStatus(
        id=job.id,
        state=job.state.value,  # type: ignore[arg-type]  # jobs of this kind are never blocked
        task=job.parameters["task"],
        scale=job.parameters["scale"],
        model=job.parameters["model"],
        frames_done=job.progress,
        frames=job.total,
        progress=job.progress / total if total else 0.0,
        attempts=job.attempts,
        created=moment(job.created),
        started=moment(job.started),
        finished=moment(job.finished),
        facts=RestorationFacts(**job.outcome["facts"]) if job.outcome else None,
        problem=JobProblem(**job.problem) if job.problem else None,
        result=f"{base}/{job.id}/result" if job.state is State.DONE else None,
        events=f"{base}/{job.id}/events",
    )


async def _receive(request: Request, service: Service, jobs: JobEngine, asked: dict[str, Any], key: str | None) -> Job:
    """Writes the image into a new job's folder and queues the job; nothing is left where that fails.

    What can be refused without the body is refused before it is read.
    """
    bundle = service.catalogue.lookup(asked["named"], asked["task"], asked["scale"])
    wanted = Wanted(model=bundle.reference, **asked)
    choose(wanted.accept, OUTPUTS)
    jobs.check()
    id, limit = jobs.new_id(), service.settings.job_bytes
    async with jobs.folder.promise(id, declared_bytes(request, limit, undeclared=0)):
        try:
            path = await whole(asyncio.to_thread(lambda: private_file(jobs.folder.make(id) / INPUT)))
            cover = partial(jobs.folder.cover, id)
            hint = await save_upload(request, limit, service.settings.stall_s, path, cover)
            async with jobs.intake:
                frames = await whole(asyncio.to_thread(_judge, path, hint, service, jobs, bundle, wanted))
        except BaseException:
            await whole(asyncio.to_thread(jobs.folder.delete, id))
            raise
    return await jobs.submit(id, KIND, vars(wanted), frames, key, asked)


def _judge(path: Path, hint: str | None, service: Service, jobs: JobEngine, bundle: Bundle, wanted: Wanted) -> int:
    """The number of frames, once nothing speaks against the job that the header can tell."""
    with open_frames(path, service.settings.job_limits, service.settings.limits, hint) as frames:
        options = wanted.options(bundle, service.settings.consistency_db)
        check(frames.image, bundle, options, service.settings.job_limits)
        choose(wanted.accept, formats_of(frames.image))
        jobs.folder.check(bytes_needed(path, frames.image, wanted.scale))
        return frames.image.frames


def _stat(path: Path) -> os.stat_result:
    """Of a result. Raises JobNotFound."""
    try:
        return path.stat()
    except FileNotFoundError:
        raise JobNotFound("the job's files were deleted just now") from None


def _asked(query: JobQuery, accept: str | None) -> dict[str, Any]:
    """What the caller chose: all fields of `Wanted` but the model that is found for him. Raises OptionError."""
    denoise = query.task == "denoise"
    if denoise and query.scale is not None:
        raise OptionError("scale belongs to superresolve; denoise keeps rows and columns")
    if not denoise and (query.strength is not None or query.sigma is not None):
        raise OptionError("strength and sigma belong to denoising; superresolve takes neither")
    if denoise and (query.strict or query.min_consistency is not None):
        raise OptionError("strict and min_consistency belong to superresolve; denoise takes neither")
    if not denoise and query.scale is None:
        raise OptionError("superresolve needs scale=2 or scale=4")
    strength = 1.0 if query.strength is None else query.strength
    return {
        "task": query.task,
        "scale": int(query.scale or 1),
        "named": query.model,
        "strength": strength,
        "sigma": query.sigma,
        "precision": query.precision,
        "accept": accept,
        **({"strict": True} if query.strict else {}),  # keys of jobs that were made before there was a guard stay good
        **({} if query.min_consistency is None else {"min_consistency": query.min_consistency}),
    }


async def _find(request: Request, job_id: str) -> Job:
    """A restoration by its id; other kinds of jobs have routes of their own. Raises JobNotFound."""
    job = await engine_of(request).get(job_id)
    if job.kind != KIND:
        raise JobNotFound("no such job of this kind")
    request.scope["facts"] = {"job": job.id}
    return job


def _base(request: Request) -> str:
    """The path of all jobs as the caller reached it, `/v1` or none before it."""
    return request.url.path.partition("/jobs")[0] + "/jobs"


def _headers(job: Job) -> dict[str, str]:
    if job.state.final:
        return {}
    return {"Retry-After": str(math.ceil(_retry_after_s(job)))}


def _retry_after_s(job: Job) -> float:
    """When to look again: when the job may be done, and not too seldom."""
    if job.started is None or not job.progress or not job.total:
        return 5.0
    left_s = (time.time() - job.started) * (job.total - job.progress) / job.progress
    return min(max(left_s, RETRY_LEAST_S), RETRY_MOST_S)


def moment(seconds: float | None) -> Any:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
