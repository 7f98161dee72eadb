"""Who may call what: API keys with scopes, checked before a route is looked for and before a body is read.

A key comes as `Authorization: Bearer ...` (RFC 6750) or as `X-API-Key`; the second leaves `Authorization` to a proxy
in front. `TABLE` says which scope a path needs. A path without a row has no route, whoever asks.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from app import problem
from app.audit import Audit, address_of
from app.errors import AmbiguousKey, HeadTooLarge, KeyBusy, ScopeMissing, ServiceError, Throttled, Unauthenticated
from app.head import HEAD_BYTES, head_bytes
from app.key import Keys, Scope, read_keys
from app.log import event, places
from app.settings import Settings
from app.throttle import Throttle
from models.errors import OptionError

API_KEY = "X-API-Key"
WEBHOOK = "(webhook)"  # stands for a name, which no key has, where the webhook's own token was given
KEY_SHAPE = re.compile(r"[A-Za-z0-9._~+/=-]{1,256}")  # b64token of RFC 6750, section 2.1, and not longer than sensible


class Rule(StrEnum):
    """What a path needs that is not one scope."""

    OPEN = "nothing"
    KEY = "any key"
    HOOK = "the webhook's token, or scope pacs"
    SCRAPE = "scope admin, or nothing by the setting `metrics_open`"


# The one table: path, with or without /v1 before it, and what it needs. The longest row that a path lies under holds;
# open rows hold for exactly their path. A route without a row cannot be reached.
TABLE: dict[str, Scope | Rule] = {
    "/healthz/live": Rule.OPEN,
    "/healthz/ready": Rule.OPEN,
    "/metrics": Rule.SCRAPE,
    "/openapi.json": Rule.KEY,
    "/models": Rule.KEY,
    "/denoise": Scope.RESTORE,
    "/superresolve": Scope.RESTORE,
    "/analyze": Scope.RESTORE,
    "/jobs": Scope.RESTORE,
    "/v2": Scope.RESTORE,
    "/v2/health/live": Rule.OPEN,
    "/v2/health/ready": Rule.OPEN,
    "/pacs": Scope.PACS,
    "/pacs/events": Rule.HOOK,
    "/dicomweb": Scope.PACS,
}


def row_of(path: str) -> str | None:
    """The row of `TABLE` that a path lies under."""
    plain = path.removeprefix("/v1") if path.startswith("/v1/") else path
    rows = [row for row, need in TABLE.items() if plain == row or (need != Rule.OPEN and plain.startswith(row + "/"))]
    return max(rows, key=len, default=None)


def scope_of(need: Scope | Rule) -> Scope | None:
    """The scope that a key must have; None where any will do."""
    if isinstance(need, Scope):
        return need
    return {Rule.HOOK: Scope.PACS, Rule.SCRAPE: Scope.ADMIN}.get(need)


class Access:
    """Decides about requests by the settings and the keys of this moment."""

    def __init__(self, settings: Settings, audit: Audit, throttle: Throttle | None = None) -> None:
        self._settings = settings
        self._audit = audit
        self._keys = Keys(settings.keys, self._keys_changed)
        self._throttle = throttle or Throttle(settings.key_failures)
        self._under_way: Counter[str] = Counter()

    def admit(self, connection: Connection) -> AbstractContextManager[None]:
        """What to hold while the request is answered. Notes `row`, `access` and `caller` in the connection.

        Raises AmbiguousKey, Unauthenticated, Throttled, ScopeMissing and KeyBusy.
        """
        row = connection["row"] = row_of(connection["path"])
        need = TABLE[row] if row else Rule.KEY
        if need == Rule.OPEN or (need == Rule.SCRAPE and self._settings.metrics_open):
            return nullcontext()
        connection["access"] = "allowed" if row else None
        if self._needs_nothing(need):
            return nullcontext()
        try:
            name = connection["caller"] = self._identify(connection, need)
            if self._under_way[name] >= self._settings.key_requests:
                raise KeyBusy(self._settings.key_requests)
        except ServiceError as error:
            connection["access"] = None if isinstance(error, Throttled) else "denied"
            raise
        return self._counted(name)

    def _needs_nothing(self, need: Scope | Rule) -> bool:
        """Whether keys are off for this; a webhook's token, once set, is asked for all the same."""
        return self._settings.access == "open" and (need != Rule.HOOK or not self._settings.has_webhook_token)

    def _identify(self, connection: Connection, need: Scope | Rule) -> str:
        """The name of the key that was given, once it may do this."""
        address = address_of(connection)
        try:
            secret = presented(Headers(scope=connection))
        except AmbiguousKey as error:
            raise self._failure(address, error) from error
        if secret and need == Rule.HOOK and hmac.compare_digest(secret.encode(), self._webhook_token()):
            return WEBHOOK
        key = self._keys.find(secret, datetime.now(UTC)) if secret else None
        if key is None:
            raise self._failure(address, Unauthenticated(wrong=secret is not None))
        connection["caller"] = key.name
        if (scope := scope_of(need)) and scope not in key.scopes:
            raise ScopeMissing(scope)
        return key.name

    def _webhook_token(self) -> bytes:
        """Read each time, so that a changed file holds at once; empty, which no key is, where there is none."""
        try:
            return (self._settings.webhook_secret() or "").encode()
        except (OSError, UnicodeDecodeError) as error:
            event("webhook token cannot be read", logging.ERROR, **places(error))
            return b""

    def _failure(self, address: str, error: ServiceError) -> ServiceError:
        """What a caller is told who failed to name a key; booked."""
        if (wait_s := self._throttle.wait_s(address)) > 0:
            return Throttled(wait_s)
        if self._throttle.failed(address):
            self._audit.write("throttled", address=address, wait_s=round(self._throttle.wait_s(address)))
        return error

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        self._under_way[name] += 1
        try:
            yield
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]

    def _keys_changed(self, act: str, **facts: Any) -> None:
        self._audit.write(act, **facts)
        if "reason" in facts:
            event(act, logging.ERROR, **facts)


def announce(settings: Settings) -> None:
    """Says aloud at the start who may call. Raises OptionError where keys, token or audit file cannot be used."""
    audit = Audit(settings.audit, lambda: None)
    audit.check()
    audit.close()
    token = settings.webhook_secret()
    if token is not None and not KEY_SHAPE.fullmatch(token):
        raise OptionError("webhook_token: 1 to 256 of the characters A-Z a-z 0-9 - . _ ~ + / =")
    if settings.access == "open":
        text = "access is open: whoever can connect may do everything"
        event(text, logging.WARNING, host=settings.host)
    elif not read_keys(settings.keys):
        text = "no API keys yet, so that every request is refused: make one with `medrestore key new`"
        event(text, logging.WARNING, keys=str(settings.keys))


class Guard:
    """ASGI middleware inside of `app.middleware.Monitor`: lets through what `Access` admits."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            if head_bytes(scope) > HEAD_BYTES:
                raise HeadTooLarge(HEAD_BYTES)
            place = self._access.admit(scope)
        except ServiceError as error:
            refusal = problem.of_error(request, error)
            if (scope.get("row") or "").startswith("/v2"):
                refusal = problem.of_protocol(refusal)
            await refusal(scope, receive, send)
            return
        if scope["row"] is None:
            await problem.of_http(request, HTTPException(404))(scope, receive, send)
            return
        with place:
            await self._app(scope, receive, send)


def presented(headers: Headers) -> str | None:
    """The key that a request carries; None where it carries none. One that no key looks like is as good as wrong.

    Raises AmbiguousKey where there are several (RFC 6750, section 2: one method at a time). Other schemes than Bearer
    are somebody else's and left alone.
    """
    schemes = [text.strip().partition(" ") for text in headers.getlist("authorization")]
    bearer = [rest.strip() for scheme, _, rest in schemes if scheme.lower() == "bearer"]
    given = bearer + [text.strip() for text in headers.getlist(API_KEY)]
    if len(given) > 1:
        raise AmbiguousKey
    if not given:
        return None
    return given[0] if KEY_SHAPE.fullmatch(given[0]) else ""
