"""Attempts to get in, and what they are answered: `python -m tests.benchmarks.access`.

The whole application in this process. The tables are asserted by tests/integration/test_access.py.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from app.key import Scope, make_key, remove_key
from tests.benchmarks.harness import Table, add_common, finish
from tests.integration.client import Client, serving
from tests.tiny_bundle import write_tiny

TOKEN = "the-webhooks-own-token"
SETTINGS: dict[str, Any] = {"access": "keys", "webhook_token": TOKEN, "key_requests": 2, "job_free_bytes": 0}
GROUPS = {
    "health": ("GET", "/healthz/live"),
    "metrics": ("GET", "/v1/metrics"),
    "OpenAPI": ("GET", "/openapi.json"),
    "models": ("GET", "/models"),
    "denoise": ("POST", "/denoise"),
    "jobs": ("GET", "/v1/jobs"),
    "v2": ("GET", "/v2/models/tiny"),
    "v2 health": ("GET", "/v2/health/live"),
    "PACS": ("GET", "/pacs/status"),
    "webhook": ("POST", "/pacs/events/orthanc"),
    "STOW": ("POST", "/dicomweb/studies"),
    "no such path": ("GET", "/secret"),
}


class Door:
    """Sends requests to a running application, each caller from an address of its own."""

    _callers = itertools.count(1)

    def __init__(self, client: Client) -> None:
        self._client = client

    def caller(self) -> str:
        """An address that nobody has had."""
        return f"198.51.100.{next(self._callers)}"

    def ask(self, address: str, method: str, path: str, headers: Any = None, content: Any = None) -> httpx.Response:
        return self._client.runner.run(self.send(address, method, path, headers, content))

    async def send(self, address: str, method: str, path: str, headers: Any, content: Any = None) -> httpx.Response:
        transport = httpx.ASGITransport(self._client.app, client=(address, 4000))
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as http:
            return await http.request(method, path, headers=headers, content=content)

    def busy(self, headers: Any, held: int) -> httpx.Response:
        """The answer while `held` requests of the same key are still sending their bodies."""

        async def scene() -> httpx.Response:
            sent = asyncio.Event()

            async def body() -> AsyncIterator[bytes]:
                yield b"x"
                await sent.wait()

            tasks = [
                asyncio.create_task(self.send("203.0.113.1", "POST", "/denoise", headers, body())) for _ in "x" * held
            ]
            while self._client.service.gate.requests < held:
                await asyncio.sleep(0.001)
            answer = await self.send("203.0.113.1", "GET", "/models", headers)
            sent.set()
            await asyncio.gather(*tasks)
            return answer

        return self._client.runner.run(scene())


def shown(answer: httpx.Response) -> str:
    """The status; `in` before it where the request got past the door."""
    slug = str(answer.json().get("type", "")) if "problem" in answer.headers.get("content-type", "") else ""
    refused = answer.status_code in (401, 403, 431) or slug.endswith(("ambiguous-key", "throttled", "key-busy"))
    return str(answer.status_code) if refused else f"in ({answer.status_code})"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def keys_of(path: Path) -> dict[str, dict[str, str]]:
    """Keys made for the tables: headers by what is sent."""
    secrets = {scope: make_key(path, scope, [scope]) for scope in Scope}
    every = make_key(path, "every", list(Scope))
    expired = make_key(path, "expired", list(Scope), datetime.now(UTC) - timedelta(seconds=1))
    removed = make_key(path, "removed", list(Scope))
    remove_key(path, "removed")
    return {
        "no key": {},
        "wrong key": bearer("mr_" + "x" * 43),
        "expired key": bearer(expired),
        "removed key": bearer(removed),
        **{f"key, scope {scope}": bearer(secret) for scope, secret in secrets.items()},
        "key, all scopes": {"X-API-Key": every},
        "webhook's token": bearer(TOKEN),
    }


def matrix(door: Door, keys: Mapping[str, dict[str, str]]) -> Table:
    """Each kind of key at each group of routes."""
    table = Table("Keys and routes", notes=["in (...): past the door, with the status of the route itself"])
    for sent, headers in keys.items():
        address = door.caller()
        cells = {group: shown(door.ask(address, *route, headers)) for group, route in GROUPS.items()}
        table.rows.append({"sent": sent, **cells})
    return table


def manners(door: Door, keys: Mapping[str, dict[str, str]], path: Path) -> Table:
    """The ways of sending a key, and of sending too much."""
    every = keys["key, all scopes"]["X-API-Key"]
    ways: dict[str, Any] = {
        "Authorization: Bearer": bearer(every),
        "authorization: bEaReR, spaces": {"authorization": f"bEaReR   {every} "},
        "X-API-Key": {"X-API-Key": every},
        "X-API-Key beside a proxy's Authorization: Basic": {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": every},
        "Authorization: Basic alone": {"Authorization": "Basic Zm9vOmJhcg=="},
        "both headers at once": {**bearer(every), "X-API-Key": every},
        "one header twice": [("X-API-Key", every), ("X-API-Key", every)],
        "an empty key": {"X-API-Key": ""},
        "two keys in one header": {"X-API-Key": every + " " + every},
        "a key of 8 KiB": {"X-API-Key": "x" * 8192},
        "a header of 64 KiB": {"X-API-Key": "x" * 65536},
        "the key in the query": {},
    }
    table = Table("Ways to send a key")
    for way, headers in ways.items():
        query = f"?api_key={every}" if "query" in way else ""
        table.rows.append(_row(way, door.ask(door.caller(), "GET", "/openapi.json" + query, headers)))
    table.rows.append(
        _row("a third request of a key that may have 2 under way", door.busy(keys["key, scope restore"], 2))
    )
    address = door.caller()
    for _ in range(10):
        door.ask(address, "GET", "/models", bearer("mr_wrong"))
    table.rows.append(_row("wrong key, the 11th within a minute", door.ask(address, "GET", "/models", bearer("wrong"))))
    table.rows.append(_row("no key, from the same address", door.ask(address, "GET", "/models")))
    table.rows.append(_row("right key, from the same address", door.ask(address, "GET", "/models", bearer(every))))
    remove_key(path, "every")
    table.rows.append(_row("that key, once it was removed", door.ask(door.caller(), "GET", "/models", bearer(every))))
    return table


def _row(attempt: str, answer: httpx.Response) -> dict[str, str]:
    names = ("WWW-Authenticate", "Retry-After")
    told = [f"{name}: {answer.headers[name]}" for name in names if name in answer.headers]
    return {"attempt": attempt, "answer": shown(answer), "headers": "; ".join(told)}


def main() -> None:
    parser = argparse.ArgumentParser(description="What attempts to get in are answered.")
    add_common(parser)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_tiny(root / "bundles")
        keys = keys_of(root / "keys.toml")
        with serving(root / "bundles", keys=root / "keys.toml", jobs=root / "jobs", **SETTINGS) as client:
            door = Door(client)
            finish([matrix(door, keys), manners(door, keys, root / "keys.toml")], options.json)


if __name__ == "__main__":
    main()
