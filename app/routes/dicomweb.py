"""`POST /dicomweb/studies`: the STOW-RS door (PS3.18 section 10.5). What comes in is restored and sent on to a PACS.

Answered is what lies on the disk: 200 all instances, 202 some, 409 none. Each series becomes a job.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing
from email.message import Message
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath
from starlette.requests import ClientDisconnect

from app.body import declared_bytes, limited
from app.errors import Cancelled, InvalidBody, NotAcceptable
from app.jobs.store import Job
from app.negotiation import parse_accept, weight
from app.pacs.door import DUPLICATE, Door, Judgement, Transfer, keep
from app.pacs.errors import PacsMalformed, PacsUnavailable
from app.pacs.multipart import Reader, boundary_of, save_parts
from app.routes.documentation import PACS_PROBLEMS, STOW_ANSWER, STOW_BODY
from app.routes.jobs import moment
from app.routes.routing import routing_of
from app.schemas import DeliveryList, DeliveryStatus, JobProblem, JobsQuery, NoQuery
from models.errors import ImageTooLarge, UnknownFormat

router = APIRouter(prefix="/dicomweb", tags=["pacs"])

JSON = "application/dicom+json"
Study = Annotated[str, InPath(pattern=r"^[0-9.]{1,64}$", description="StudyInstanceUID that all instances must have")]


@router.post("/studies", response_class=Response, openapi_extra=STOW_BODY, responses=STOW_ANSWER)
async def store_instances(request: Request, _: Annotated[NoQuery, Query()]) -> Response:
    """Takes DICOM instances of any studies, one part of `multipart/related; type="application/dicom"` each."""
    return await _store(request, None)


@router.post("/studies/{study}", response_class=Response, openapi_extra=STOW_BODY, responses=STOW_ANSWER)
async def store_instances_of_study(request: Request, study: Study, _: Annotated[NoQuery, Query()]) -> Response:
    """Takes DICOM instances of one study; those of another are refused one by one."""
    return await _store(request, study)


@router.get("/jobs", responses=PACS_PROBLEMS)
async def list_deliveries(request: Request, query: Annotated[JobsQuery, Query()]) -> DeliveryList:
    """The newest jobs of what came in, by STOW or by C-STORE."""
    jobs = await routing_of(request).the_door().deliveries(query.limit)
    return DeliveryList(jobs=[_delivery(job) for job in jobs])


@router.post("/jobs/{job_id}/retry", responses=PACS_PROBLEMS)
async def retry_delivery(request: Request, job_id: str, _: Annotated[NoQuery, Query()]) -> DeliveryStatus:
    """Has a job run now that waits, is blocked or has ended, and tries again what was refused of it."""
    return _delivery(await routing_of(request).the_door().retry(job_id))


def _delivery(job: Job) -> DeliveryStatus:
    return DeliveryStatus(
        id=job.id,
        state=job.phase or job.state.value,
        pacs=job.parameters["pacs"],
        study=job.parameters["study"],
        series=job.parameters["series"],
        derived_series=(job.outcome or {}).get("series"),
        instances=job.total or 0,
        settled=job.progress,
        failed=(job.outcome or {}).get("failed"),
        created=moment(job.created),
        finished=moment(job.finished),
        problem=JobProblem(**job.problem) if job.problem else None,
    )


async def _store(request: Request, study: str | None) -> Response:
    door = routing_of(request).the_door()
    boundary = _boundary(request)
    _check_accept(request.headers.get("accept"))
    limit: int = request.app.state.service.settings.door_bytes
    declared = declared_bytes(request, limit, 0)
    transfer = await door.begin("stow")
    try:
        await transfer.cover(declared)
        told = await _receive(request, door, transfer, study, boundary)
        told = door.told_of_series(told)
        jobs = await door.close(transfer.folder) if any(one.failure is None for one in told) else []
    finally:
        await door.discard(transfer.folder)
    request.scope["facts"] = {"instances": len(told), "jobs": len(jobs), **_reasons(told)}
    return Response(json.dumps(answer_of(told)), status_of(told), media_type=JSON)


async def _receive(
    request: Request, door: Door, transfer: Transfer, study: str | None, boundary: bytes
) -> list[Judgement]:
    """Writes the parts into the transfer's folder and judges each; what is refused is deleted."""
    settings = request.app.state.service.settings
    paths = iter(transfer.path, None)
    reader = Reader(boundary, settings.job_bytes)
    chunks = limited(request, settings.door_bytes, settings.stall_s, transfer.cover)
    told: list[Judgement] = []
    known: set[str] = set()
    try:
        async with aclosing(save_parts(chunks, reader, paths)) as parts:
            async for path in parts:
                if len(told) == settings.door_instances:
                    raise ImageTooLarge(f"more than {settings.door_instances} instances in one request")
                told.append(await asyncio.to_thread(_judge, door, path, study, known))
    except PacsMalformed as error:
        raise InvalidBody(str(error).partition(": ")[2]) from error
    except PacsUnavailable as error:
        raise InvalidBody("the body ends before its closing delimiter") from error
    except ClientDisconnect as error:
        raise Cancelled("the caller went away while sending") from error
    if not told:
        raise InvalidBody("a body without a part")
    return told


def _judge(door: Door, path: Path, study: str | None, known: set[str]) -> Judgement:
    """The judgement on one part, whose file is on the disk where it is accepted, and gone where it is not."""
    judged = door.judge(path, study)
    if judged.head and judged.failure is None and judged.head.sop_instance in known:
        judged = Judgement(judged.head, DUPLICATE, "duplicate")
    if judged.head is None or judged.failure is not None:
        path.unlink()
    else:
        known.add(judged.head.sop_instance)
        keep(path)
    return judged


def _boundary(request: Request) -> bytes:
    """Raises UnknownFormat for what is not `multipart/related` of DICOM files, InvalidBody without a boundary."""
    content_type = request.headers.get("content-type", "")
    message = Message()
    message["Content-Type"] = content_type
    kind = message.get_param("type", "application/dicom")
    if message.get_content_type() != "multipart/related" or kind != "application/dicom":
        raise UnknownFormat('send multipart/related; type="application/dicom": one DICOM file in each part')
    try:
        return boundary_of(content_type)
    except PacsMalformed as error:
        raise InvalidBody("the Content-Type names no valid boundary") from error


def _check_accept(accept: str | None) -> None:
    """Raises NotAcceptable where JSON is none of what is accepted."""
    if weight(JSON, parse_accept(accept)) <= 0:
        raise NotAcceptable([JSON])


def status_of(told: list[Judgement]) -> int:
    """PS3.18 table 10.5.3-1."""
    failed = sum(one.failure is not None for one in told)
    return 200 if not failed else 202 if failed < len(told) else 409


def answer_of(told: list[Judgement]) -> dict[str, Any]:
    """The store instances response (PS3.18 section 10.5.3, PS3.3 annex I.1) as DICOM JSON; empty sequences are left
    out. Instances cannot be fetched here, so that Retrieve URL has no value."""
    stored = [_item(one) | {"00081190": {"vr": "UR"}} for one in told if one.failure is None]
    failed = [_item(one) | _failure(one) for one in told if one.head and one.failure is not None]
    others = [_failure(one) for one in told if not one.head]
    sequences = {"00081198": failed, "00081199": stored, "0008119A": others}
    return {"00081190": {"vr": "UR"}} | {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items}


def _item(one: Judgement) -> dict[str, Any]:
    assert one.head
    return {
        "00081150": {"vr": "UI", "Value": [one.head.sop_class]},
        "00081155": {"vr": "UI", "Value": [one.head.sop_instance]},
    }


def _failure(one: Judgement) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [one.failure]}}


def _reasons(told: list[Judgement]) -> dict[str, Any]:
    """How many were refused for which reason, for the log."""
    counts = Counter(one.reason for one in told if one.reason)
    return {"refused": dict(counts)} if counts else {}
