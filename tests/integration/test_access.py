"""Who gets in: the tables of tests.benchmarks.access, asserted; and that nothing secret is told on the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts

from app.access import TABLE, Rule, row_of
from app.key import Scope, make_key, remove_key
from app.main import create_app
from app.settings import Settings
from tests.benchmarks.access import GROUPS, SETTINGS, TOKEN, Door, bearer, keys_of, manners, matrix
from tests.integration.client import Client, problem, serving

OPEN = {"health", "v2 health"}
LET_IN = {
    "no key": OPEN,
    "wrong key": OPEN,
    "expired key": OPEN,
    "removed key": OPEN,
    "key, scope restore": OPEN | {"OpenAPI", "models", "denoise", "jobs", "v2", "no such path"},
    "key, scope pacs": OPEN | {"OpenAPI", "models", "PACS", "webhook", "STOW", "no such path"},
    "key, scope admin": OPEN | {"OpenAPI", "models", "metrics", "no such path"},
    "key, all scopes": set(GROUPS),
    "webhook's token": OPEN | {"webhook"},
}
WAYS = {
    "Authorization: Bearer": "in (200)",
    "authorization: bEaReR, spaces": "in (200)",
    "X-API-Key": "in (200)",
    "X-API-Key beside a proxy's Authorization: Basic": "in (200)",
    "Authorization: Basic alone": "401",
    "both headers at once": "400",
    "one header twice": "400",
    "an empty key": "401",
    "two keys in one header": "401",
    "a key of 8 KiB": "401",
    "a header of 64 KiB": "431",
    "the key in the query": "401",
    "a third request of a key that may have 2 under way": "429",
    "wrong key, the 11th within a minute": "429",
    "no key, from the same address": "429",
    "right key, from the same address": "in (200)",
    "that key, once it was removed": "401",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def guarded(built_repository: Path, folder: Path) -> Iterator[Client]:
    """An application that wants keys, with an audit file."""
    settings = {**SETTINGS, "keys": folder / "keys.toml", "audit": folder / "audit.log", "jobs": folder / "jobs"}
    with serving(built_repository, **settings) as client:
        yield client


def audited(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "audit.log").read_text().splitlines()]


def test_every_route_has_its_row_and_every_group_its_route(tmp_path: Path) -> None:
    routes = [context.path for context in iter_route_contexts(create_app(Settings(repository=tmp_path)).routes)]
    assert len(routes) > 20
    rows = {path: row_of(path or "") for path in routes}
    assert [path for path, row in rows.items() if row is None] == [], "give these routes a row in app.access.TABLE"
    unguarded = {path for path, row in rows.items() if row and TABLE[row] == Rule.OPEN}
    health = {f"{version}/healthz/{kind}" for version in ("", "/v1") for kind in ("live", "ready")}
    assert unguarded == health | {"/v2/health/live", "/v2/health/ready"}


def test_the_tables_of_attempts_and_nothing_secret_in_log_or_audit(
    guarded: Client, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door, keys = Door(guarded), keys_of(folder / "keys.toml")
    with caplog.at_level(logging.DEBUG):
        found = matrix(door, keys).rows
        ways = {row["attempt"]: row["answer"] for row in manners(door, keys, folder / "keys.toml").rows}
    assert {row["sent"]: {g for g in GROUPS if row[g].startswith("in")} for row in found} == LET_IN
    lacking = [row[g] for row in found[4:8] for g in GROUPS if not row[g].startswith("in")]
    assert set(lacking) == {"403"}
    assert {row[g] for row in found[:4] for g in GROUPS if not row[g].startswith("in")} == {"401"}
    assert ways == WAYS
    ours = [record for record in caplog.records if not record.name.startswith(("http", "asyncio"))]
    told = json.dumps([str(vars(record)) for record in ours]) + (folder / "audit.log").read_text()
    for headers in keys.values():
        for value in headers.values():
            assert value.removeprefix("Bearer ") not in told
    assert "x" * 40 not in told
    assert [line for line in audited(folder) if line["act"] == "throttled"] != []


def test_refusals_are_problems_that_name_the_scheme(guarded: Client, folder: Path) -> None:
    door, secret = Door(guarded), make_key(folder / "keys.toml", "pacs-only", [Scope.PACS])
    missing = door.ask(door.caller(), "POST", "/denoise", content=b"x")
    assert problem(missing)["type"] == "urn:medrestore:problem:unauthenticated"
    assert missing.headers["WWW-Authenticate"] == 'Bearer realm="medrestore"'
    lacking = door.ask(door.caller(), "POST", "/denoise", bearer(secret))
    assert problem(lacking)["type"] == "urn:medrestore:problem:scope-missing"
    assert 'error="insufficient_scope", scope="restore"' in lacking.headers["WWW-Authenticate"]
    protocol = door.ask(door.caller(), "GET", "/v2/models/tiny")
    assert (protocol.status_code, list(protocol.json())) == (401, ["error"])
    assert "WWW-Authenticate" in protocol.headers


def test_the_audit_tells_who_what_and_how_it_ended(guarded: Client, folder: Path, picture: bytes) -> None:
    door, secret = Door(guarded), make_key(folder / "keys.toml", "ct-room.2", [Scope.RESTORE])
    headers = {"X-API-Key": secret, "X-Request-Id": "r-77"}
    address = door.caller()
    assert door.ask(address, "POST", "/denoise", headers, picture).status_code == 200
    assert door.ask(address, "POST", "/v1/denoise", headers, b"no image").status_code == 415
    job = door.ask(address, "POST", "/jobs?task=denoise", headers, picture).json()["id"]
    door.ask(address, "GET", f"/jobs/{job}", headers)
    door.ask(address, "DELETE", f"/jobs/{job}", headers)
    door.ask(address, "GET", "/pacs/jobs/Doe^Jane?study=1.2.3", headers)
    lines = [line for line in audited(folder) if line.get("address") == address]
    kept = [(line["method"], line["route"], line["outcome"], line["status"], line.get("job")) for line in lines]
    assert kept == [
        ("POST", "/denoise", "done", 200, None),
        ("POST", "/denoise", "failed", 415, None),
        ("POST", "/jobs", "done", 202, job),
        ("DELETE", "/jobs/{job_id}", "done", 204, job),
        ("GET", "/pacs", "denied", 403, None),
    ]
    assert {(line["who"], line["request_id"]) for line in lines} == {("ct-room.2", "r-77")}
    assert lines[0]["request_bytes"] == len(picture)
    assert "Jane" not in (folder / "audit.log").read_text()


def test_a_key_works_at_once_and_stops_at_once(guarded: Client, folder: Path) -> None:
    door, path = Door(guarded), folder / "keys.toml"
    secret = make_key(path, "visitor", [Scope.RESTORE])
    assert door.ask(door.caller(), "GET", "/models", bearer(secret)).status_code == 200
    remove_key(path, "visitor")
    assert door.ask(door.caller(), "GET", "/models", bearer(secret)).status_code == 401
    reloads = [line for line in audited(folder) if line["act"] == "keys read"]
    assert reloads[-2]["added"] == reloads[-1]["removed"] == ["visitor"]


def test_metrics_may_be_opened_to_scrapers_and_nothing_else_with_them(built_repository: Path, tmp_path: Path) -> None:
    with serving(built_repository, access="keys", metrics_open=True, keys=tmp_path / "none.toml") as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/models").status_code == 401


def test_open_access_asks_for_nothing_but_the_webhooks_token(built_repository: Path) -> None:
    with serving(built_repository, access="open", webhook_token=TOKEN) as client:
        assert client.get("/models").status_code == 200
        assert client.get("/models", headers=bearer("anything")).status_code == 200
        hook = "/pacs/events/orthanc"
        assert problem(client.post(hook, b"{}"))["status"] == 401
        assert client.post(hook, b"{}", headers=bearer(TOKEN)).status_code not in (401, 403)


def test_openapi_tells_the_schemes_and_what_each_operation_needs(guarded: Client) -> None:
    document = guarded.app.openapi()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "key"}
    assert document["paths"]["/denoise"]["post"]["security"] == [{"bearer": ["restore"]}, {"key": ["restore"]}]
    assert document["paths"]["/models"]["get"]["security"] == [{"bearer": []}, {"key": []}]
    assert document["paths"]["/healthz/live"]["get"]["security"] == []
    assert {"401", "403"} <= set(document["paths"]["/jobs"]["post"]["responses"])
