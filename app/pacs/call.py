"""One HTTP call to a PACS: credentials, time limits, attempts, and every failure as a `PacsError`.

Addresses come from the settings alone: redirects are not followed, and nothing of the environment (proxies,
.netrc) is heeded.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from app.build import PRODUCT
from app.pacs.errors import PacsDenied, PacsError, PacsGone, PacsMalformed, PacsRefused, PacsUnavailable
from app.pacs.multipart import Body
from app.pacs.peer import Peer

T = TypeVar("T")
Observe = Callable[[str, str, float], None]  # verb, status class ("2xx") or the failure's reason, seconds
Params = list[tuple[str, str | int | float | bool | None]]

JSON = "application/dicom+json, application/json"
ANSWER_BYTES = 32 * 1024**2  # of JSON
SHORT_S = 5.0  # a longer Retry-After is for the caller to wait out
LONGEST_S = 3600.0  # no PACS is believed that asks for more
IDLE_S = 0.8  # Orthanc closes idle connections after a second
WORTH_RETRYING = frozenset({"dns", "connect", "dropped", "busy", "error"})


def open_client(peer: Peer) -> httpx.AsyncClient:
    """The connections to one PACS; the caller closes it. Raises OSError where `ca_file` cannot be used."""
    encrypted = any(base.startswith("https:") for base in (peer.url, peer.orthanc) if base)
    context = ssl.create_default_context(cafile=peer.ca_file) if encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx.Limits(max_connections=peer.connections, keepalive_expiry=IDLE_S)
    timeout = httpx.Timeout(peer.read_s, connect=peer.connect_s, pool=peer.total_s)
    return httpx.AsyncClient(
        verify=context,
        limits=limits,
        timeout=timeout,
        headers={"User-Agent": PRODUCT},
        trust_env=False,
        follow_redirects=False,
    )


class Caller:
    """Calls one PACS. `observe` is told of each attempt, without anything that names a patient or an image."""

    def __init__(self, peer: Peer, client: httpx.AsyncClient, observe: Observe | None = None) -> None:
        self.peer = peer
        self._client = client
        self._observe = observe or (lambda verb, outcome, seconds: None)
        self._not_before = 0.0  # monotonic; what the PACS asked for by Retry-After

    async def attempts(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does `work`, again after a failure that may pass at once. Raises what its last attempt raised."""
        attempt = 0
        while True:
            try:
                await self._wait_turn()
                return await work()
            except PacsUnavailable as error:
                self._heed(error)
                hopeless = error.reason not in WORTH_RETRYING or (error.retry_after_s or 0) > SHORT_S
                if hopeless or attempt >= self.peer.retries:
                    raise
            await asyncio.sleep(self.peer.retry_s * 2**attempt * random.uniform(0.5, 1))
            attempt += 1

    async def limited(self, work: Awaitable[T]) -> T:
        """The result of `work` within the limit of one call. Raises PacsUnavailable when that has passed."""
        with translated():
            async with asyncio.timeout(self.peer.total_s):
                return await work

    @asynccontextmanager
    async def answer(
        self,
        verb: str,
        url: str,
        *,
        accept: str,
        params: Params | None = None,
        body: Body | None = None,
        streamed: bool = False,
    ) -> AsyncIterator[httpx.Response]:
        """One attempt of a GET, or a POST of `body`: the answer as soon as its header is there.

        The limit of one call is over all that is done with the answer, but for a streamed one, whose user
        limits each step. Raises PacsError; the status of a POST is not judged.
        """
        headers = {"Accept": accept, "Accept-Encoding": "identity", **(body.headers if body else {})}
        headers |= await asyncio.to_thread(self.peer.authorization)
        method = "POST" if body else "GET"
        request = self._client.build_request(method, url, params=params, headers=headers, content=body)
        with self._observed(verb) as outcome, translated():
            async with asyncio.timeout(self.peer.total_s) as limit:
                response = await self._client.send(request, stream=True, follow_redirects=False)
                try:
                    outcome.status = response.status_code
                    if not body:
                        judge(response)
                    if streamed:
                        limit.reschedule(None)
                    yield response
                finally:
                    await response.aclose()

    async def json(self, verb: str, url: str, params: Params | None = None) -> Any:
        """The JSON of a GET, None for 204. Raises PacsError."""

        async def work() -> Any:
            async with self.answer(verb, url, accept=JSON, params=params) as response:
                return None if response.status_code == HTTPStatus.NO_CONTENT else parse(await whole(response))

        return await self.attempts(work)

    async def _wait_turn(self) -> None:
        """Keeps to a Retry-After that another call was told. Raises PacsUnavailable where that is long."""
        wait_s = self._not_before - time.monotonic()
        if wait_s > SHORT_S:
            raise PacsUnavailable("busy", wait_s)
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def _heed(self, error: PacsUnavailable) -> None:
        if error.retry_after_s is not None:
            self._not_before = max(self._not_before, time.monotonic() + error.retry_after_s)

    @contextmanager
    def _observed(self, verb: str) -> Iterator[_Outcome]:
        started, outcome, failure = time.perf_counter(), _Outcome(), None
        try:
            yield outcome
        except PacsError as error:
            failure = error.reason if error.status is None else None
            raise
        except (asyncio.CancelledError, GeneratorExit):
            failure = "cancelled"
            raise
        finally:
            label = failure or (f"{outcome.status // 100}xx" if outcome.status else "cancelled")
            self._observe(verb, label, time.perf_counter() - started)


@dataclass
class _Outcome:
    status: int | None = None


@contextmanager
def translated() -> Iterator[None]:
    """Failures of the connection and of time limits as PacsUnavailable."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as exc:
        raise PacsUnavailable("timeout") from exc
    except httpx.LocalProtocolError:
        raise  # ours
    except httpx.ConnectError as exc:
        raise PacsUnavailable(_cause(exc)) from exc
    except httpx.TransportError as exc:
        raise PacsUnavailable("dropped") from exc


def _cause(error: BaseException) -> str:
    """Why there was no connection."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, socket.gaierror):
            return "dns"
        if isinstance(link, ssl.SSLCertVerificationError):
            return "certificate"
        link = link.__cause__ or link.__context__
    return "connect"


def judge(response: httpx.Response) -> None:
    """Raises the PacsError that the status stands for."""
    status = response.status_code
    if 200 <= status < 300:
        return
    if status in (401, 403, 407):
        raise PacsDenied(status=status)
    if status in (404, 410):
        raise PacsGone(status)
    if status in (408, 429, 503):
        raise PacsUnavailable("busy", retry_after(response), status)
    if status >= 500 and status not in (501, 505):
        raise PacsUnavailable("error", retry_after(response), status)
    reason = {409: "conflict", 413: "too-large"}.get(status, "redirect" if status < 400 else "refused")
    raise PacsRefused(reason, status)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait by the header Retry-After (RFC 9110 10.2.3), a number or a date; None without a valid one."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_S)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    wait_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(wait_s, 0.0), LONGEST_S)


def pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes. Raises PacsMalformed for a compressed one, which was not asked for."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise PacsMalformed("media-type", "an encoding that was not asked for")
    return response.aiter_raw()


async def whole(response: httpx.Response) -> bytes:
    """The body of an answer that is short. Raises PacsMalformed above ANSWER_BYTES."""
    data = bytearray()
    async for piece in pieces(response):
        data += piece
        if len(data) > ANSWER_BYTES:
            raise PacsMalformed("too-large", f"more than {ANSWER_BYTES} bytes of JSON")
    return bytes(data)


def parse(data: bytes) -> Any:
    """What JSON says. Raises PacsMalformed."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise PacsMalformed("json", "no JSON where JSON was asked for") from exc
