"""Around every request: its id, its metrics, its log line, and the answer to what nobody foresaw."""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.audit import Audit
from app.log import event, places
from app.monitoring import Metrics
from app.problem import of_unexpected
from app.tracing import Trace, Tracer

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET = ("/metrics", "/healthz/live", "/healthz/ready", "/health/live", "/health/ready")  # asked every few seconds
UNMATCHED = "unmatched"  # label of all paths that no route has


@dataclass
class _Answer:
    """What is known of the answer while it goes out."""

    status: int = 0
    bytes: int = 0
    began: float = 0.0  # to go out, seconds of `time.perf_counter`
    ended: float = 0.0

    @property
    def send_s(self) -> float:
        return self.ended - self.began


class Monitor:
    """ASGI middleware; the outermost of ours."""

    def __init__(self, app: ASGIApp, metrics: Metrics, audit: Audit, tracer: Tracer | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._audit = audit
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["request_id"] = request_id(Headers(scope=scope).get("x-request-id"))
        start, answer = time.perf_counter(), _Answer()
        watched = _watched(send, scope["request_id"], answer, scope["app"])
        with self._metrics.open.track_inprogress(), self._traced(scope) as trace:
            try:
                await self._app(scope, receive, watched)
            except Exception as error:  # noqa: BLE001 - the last line of defence
                event("unexpected error", logging.ERROR, request_id=scope["request_id"], **places(error))
                scope["problem"] = "internal"
                if not answer.status:
                    await of_unexpected(scope["request_id"])(scope, receive, watched)
            self._book(scope, answer, time.perf_counter() - start, trace)

    def _traced(self, scope: Scope) -> AbstractContextManager[Trace | None]:
        """The request's trace, None where it has none."""
        if self._tracer is None or scope["path"].endswith(QUIET):
            return nullcontext()
        return self._tracer.request(Headers(scope=scope))

    def _book(self, scope: Scope, answer: _Answer, duration_s: float, trace: Trace | None) -> None:
        route, method = route_of(scope), scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(route, method, str(answer.status)).inc()
        self._metrics.duration.labels(route).observe(duration_s)
        self._metrics.sent.labels(route).observe(answer.bytes)
        facts = dict(scope.get("facts", {}))
        if problem := scope.get("problem"):
            self._metrics.problems.labels(problem).inc()
            facts["problem"] = problem
        if received := facts.get("request_bytes"):
            self._metrics.received.labels(route).observe(received)
        if (receive_s := facts.get("receive_s")) is not None:
            self._metrics.observe_stages({"receive": receive_s, "send": answer.send_s})
        if trace:
            trace.past("send", answer.send_s)
            trace.describe(method, route, answer.status, facts | {"request_id": scope["request_id"]})
            facts["trace_id"] = trace.trace_id
        self._audit.request(scope, method, route, answer.status, facts)
        event(
            "request",
            logging.DEBUG if route.endswith(QUIET) else logging.INFO,
            request_id=scope["request_id"],
            route=route,
            method=method,
            status=answer.status,
            response_bytes=answer.bytes,
            duration_s=round(duration_s, 4),
            **facts,
        )


def request_id(asked: str | None) -> str:
    """The caller's id where it is a plain short word, else a new one."""
    return asked if asked and REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex


def route_of(scope: Scope) -> str:
    """The declared path of the route that answered; where none was reached, the row of `app.access.TABLE` that the path
    lies under; all other paths are one."""
    return str(getattr(scope.get("route"), "path", None) or scope.get("row") or UNMATCHED)


def _watched(send: Send, identity: str, answer: _Answer, app: FastAPI) -> Send:
    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.began = answer.ended = time.perf_counter()
            answer.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = identity
            if app.state.draining:
                headers["Connection"] = "close"  # the next request had better go elsewhere
        elif message["type"] == "http.response.body":
            answer.bytes += len(message.get("body", b""))
        await send(message)
        answer.ended = time.perf_counter()

    return watched
