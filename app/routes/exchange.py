"""What the routes that take an image share: receiving it, and timing the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request

from app.body import Upload, declared_bytes, read_upload
from app.hangup import unless_gone
from app.schemas import CallHeaders
from app.service import Job, Product, Report, Service
from app.work import Priority
from models.errors import OptionError

T = TypeVar("T", Product, Report)


async def exchange(
    request: Request, job: Job, call: CallHeaders, work: Callable[[Job, Upload], Coroutine[Any, Any, T]]
) -> tuple[T, float]:
    """Receives the image and does `work` on it while the caller waits; gives the result and the seconds
    of receiving. What can be refused without the body is refused before it is read."""
    service: Service = request.app.state.service
    deadline = None if call.x_deadline_ms is None else time.monotonic() + call.x_deadline_ms / 1000
    job = replace(job, deadline=deadline, priority=Priority[call.x_priority.upper()])
    limit = service.settings.limit_bytes
    refuse_repeated(request)
    service.check(job)
    with service.gate.enter(declared_bytes(request, limit, undeclared=limit), service.engine.full):
        start = time.perf_counter()
        upload = await read_upload(request, limit, service.settings.stall_s)
        receive_s = time.perf_counter() - start
        facts = request.scope["facts"] = {"request_bytes": len(upload.data), "receive_s": round(receive_s, 4)}
        result = await unless_gone(request.receive, work(job, upload))
    facts.update(result.making.facts)
    return result, receive_s


def refuse_repeated(request: Request) -> None:
    """Raises OptionError where an option is given twice, since one of the two would be ignored."""
    names = [name for name, _ in request.query_params.multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"given more than once: {', '.join(repeated)}")


def server_timing(timings: Mapping[str, float]) -> str:
    """`Server-Timing` in milliseconds; the sum counts what follows one another, not the queue's own two."""
    total = sum(seconds for stage, seconds in timings.items() if stage not in ("queue", "run"))
    return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in {**timings, "total": total}.items())
