"""Bundles that come, go, are promoted and rolled back while the whole service runs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.bundle import promote
from tests.integration.client import Client, problem, serving
from tests.tiny_bundle import copy_bundle, spoil_golden


@pytest.fixture
def live(repository: Path) -> Iterator[Client]:
    """A service that looks at its repository, which the test changes, many times a second."""
    with serving(repository, repository_poll=0.02, fast_for_8_bit=False) as client:
        yield client


def until(client: Client, condition: Callable[[], bool]) -> None:
    """Lets the service go on until the condition holds, a minute at most."""
    for _ in range(1200):
        if condition():
            return
        client.runner.run(asyncio.sleep(0.05))
    raise AssertionError(client.get("/models").text)


def models(client: Client) -> dict[str, Any]:
    listed: dict[str, Any] = client.get("/models").json()
    return listed


def answering(client: Client, picture: bytes) -> str:
    response = client.post("/denoise", picture)
    assert response.status_code == 200, response.text
    return response.headers["X-Model"]


def default_by_metrics(client: Client) -> dict[tuple[str, str], str]:
    """Name and version -> "true" where it serves its name."""
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    labels = [sample.labels for sample in families["medrestore_model_info"].samples]
    return {(label["name"], label["version"]): label["default"] for label in labels}


def test_a_promoted_version_answers_the_next_request_and_roll_back_is_the_same(
    live: Client, repository: Path, picture: bytes
) -> None:
    promote(repository, "tiny", "1")
    copy_bundle(repository, "tiny", "tiny", "2")
    until(live, lambda: len(models(live)["models"]) == 3)
    assert answering(live, picture) == "tiny@1"
    assert live.post("/denoise?model=tiny@2", picture).headers["X-Model"] == "tiny@2"
    for version, other in (("2", "1"), ("1", "2")):
        promote(repository, "tiny", version)
        until(live, lambda wanted=version: answering(live, picture) == f"tiny@{wanted}")  # type: ignore[misc]
        marked = [m["version"] for m in models(live)["models"] if m["name"] == "tiny" and m["default"]]
        assert marked == [version]
        told = default_by_metrics(live)
        assert (told["tiny", version], told["tiny", other]) == ("true", "false")


def test_a_bad_version_is_refused_with_its_reason_and_the_old_one_serves_on(
    live: Client, repository: Path, picture: bytes
) -> None:
    elsewhere = shutil.copytree(repository, repository.with_name("elsewhere"))
    folder = copy_bundle(elsewhere, "tiny", "tiny", "2")
    spoil_golden(folder)
    folder.rename(repository / "tiny" / "2")
    promote(repository, "tiny", "2")
    until(live, lambda: "tiny@2" in models(live)["refused"])
    listed = models(live)
    assert "off the golden answer" in listed["refused"]["tiny@2"]
    assert listed["warnings"]["tiny"] == "tiny@2 is promoted but not served"
    assert answering(live, picture) == "tiny@1"
    assert problem(live.post("/denoise?model=tiny@2", picture))["status"] == 503
    assert live.service.engine.workers[0].restarts == 0


def test_a_removed_version_is_not_found(live: Client, repository: Path, picture: bytes) -> None:
    copy_bundle(repository, "tiny", "tiny", "2")
    until(live, lambda: answering(live, picture) == "tiny@2")
    shutil.rmtree(repository / "tiny" / "2")
    until(live, lambda: live.post("/denoise?model=tiny@2", picture).status_code == 404)
    assert "available: tiny@1" in problem(live.post("/denoise?model=tiny@2", picture))["detail"]
    assert answering(live, picture) == "tiny@1"


def test_no_request_fails_while_versions_change(live: Client, repository: Path, picture: bytes) -> None:
    async def ask(seen: list[str], failures: list[str], stop: asyncio.Event) -> None:
        while not stop.is_set():
            response = await live.send("POST", "/denoise", content=picture)
            if response.status_code != 200:
                failures.append(response.text)
            seen.append(response.headers.get("X-Model", ""))

    async def change(seen: list[str], stop: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(60):
                for version in ("2", "3"):
                    copy_bundle(repository, "tiny", "tiny", version)
                    while seen[-1:] != [f"tiny@{version}"]:
                        await asyncio.sleep(0.01)
                    shutil.rmtree(repository / "tiny" / version)
                    while seen[-1:] != ["tiny@1"]:
                        await asyncio.sleep(0.01)
        finally:
            stop.set()

    async def main() -> tuple[list[str], list[str]]:
        seen: list[str] = []
        failures: list[str] = []
        stop = asyncio.Event()
        await asyncio.gather(*(ask(seen, failures, stop) for _ in range(4)), change(seen, stop))
        return seen, failures

    seen, failures = live.runner.run(main())
    assert failures == []
    assert {"tiny@1", "tiny@2", "tiny@3"} == set(seen)


def test_without_polling_nothing_is_taken_up(repository: Path, picture: bytes) -> None:
    with serving(repository, repository_poll=0) as client:
        copy_bundle(repository, "tiny", "tiny", "2")
        assert not [task for task in asyncio.all_tasks(client.runner.get_loop()) if task.get_name() == "repository"]
        assert answering(client, picture) == "tiny@1"
        client.runner.run(client.service.watch.poll())
        assert answering(client, picture) == "tiny@2"
