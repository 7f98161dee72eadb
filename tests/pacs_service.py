"""A service that works with a scripted PACS, and calls to it; for all tests of PACS jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from app.pacs.peer import Peer
from tests.fake_pacs import FakePacs
from tests.integration.client import Client, serving

END_S = 60.0
ENDS = ("completed", "completed_with_gaps", "failed", "cancelled")


@contextmanager
def fast() -> Iterator[None]:
    """Waits of jobs and looks at credentials are short inside the `with` block."""
    short: dict[str, float] = {
        "app.pacs.job.WAIT_LEAST_S": 0.05,
        "app.pacs.desk.LOOK_S": 0.1,
        "app.pacs.flow.LONG_S": 0.3,
    }
    short["app.pacs.job.KEPT"] = 4
    with ExitStack() as stack:
        for name, seconds in short.items():
            stack.enter_context(patch(name, seconds))
        yield


@contextmanager
def pacs_service(fake: FakePacs, repository: Path, jobs: Path, **settings: Any) -> Iterator[Client]:
    """The application with the scripted PACS as `main`."""
    peer = settings.pop("peer", Peer(url="http://pacs/dicom-web", retries=0, connect_s=1, read_s=2, total_s=5))
    with (
        fast(),
        fake.answering(),
        serving(repository, jobs=jobs, job_free_bytes=0, pacs={"main": peer}, **settings) as c,
    ):
        yield c


def order(series: str, study: str = "1.2.3", operation: str = "denoise", **more: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"study": study, "series": series, "operation": operation, **more}


def submit(client: Client, series: str, status: int = 202, **more: Any) -> dict[str, Any]:
    """The job of a request that is answered with `status`."""
    response = client.request("POST", "/pacs/jobs", json=order(series, **more))
    assert response.status_code == status, response.text
    return dict(response.json())


def wait(client: Client, id: str, wanted: Callable[[dict[str, Any]], bool] | str | None = None) -> dict[str, Any]:
    """The job once it has ended, is in a state, or is as `wanted`."""

    def right(job: dict[str, Any]) -> bool:
        if callable(wanted):
            return wanted(job)
        return job["state"] == wanted if wanted else job["state"] in ENDS

    async def look() -> dict[str, Any]:
        stop = time.monotonic() + END_S
        while not right(job := (await client.send("GET", f"/pacs/jobs/{id}")).json()):
            assert time.monotonic() < stop, job
            assert callable(wanted) or wanted is None or job["state"] not in ENDS, job
            await asyncio.sleep(0.02)
        return dict(job)

    return client.runner.run(look())


def outcomes(client: Client, id: str) -> dict[str, tuple[str, str | None]]:
    """Source UID -> state and reason."""
    page = client.get(f"/pacs/jobs/{id}/instances?limit=1000").json()
    return {one["source"]: (one["state"], one["reason"]) for one in page["instances"]}
