"""The whole application in this process, workers included, without a socket."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
from fastapi import FastAPI
from pydicom.data import get_testdata_file

from app.main import create_app
from app.service import Service
from app.settings import Settings
from models.imaging.codec import decode
from models.imaging.image import Image


class Client:
    """Calls an application whose lifespan has begun, from code that is not asynchronous."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        self.app = app
        self.runner = runner

    @property
    def service(self) -> Service:
        return self.app.state.service

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """One request, whatever its answer."""
        return self.runner.run(self.send(method, url, **options))

    async def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as http:
            return await http.request(method, url, **options)

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, body: bytes, accept: str | None = None, **options: Any) -> httpx.Response:
        headers = options.pop("headers", {}) | ({"Accept": accept} if accept else {})
        return self.request("POST", url, content=body, headers=headers, **options)

    def restore(self, url: str, body: bytes, accept: str | None = None) -> Image:
        """The image that was answered; fails with the problem where there is none."""
        response = self.post(url, body, accept)
        assert response.status_code == 200, response.text
        return decode(response.content)


@contextmanager
def serving(repository: Path, **settings: Any) -> Iterator[Client]:
    """An application with its workers started and ready, stopped at the end; open to all unless `access` says else."""
    app = create_app(Settings(repository=repository, **{"access": "open", **settings}))
    with asyncio.Runner() as runner:
        life = app.router.lifespan_context(app)
        runner.run(life.__aenter__())
        try:
            client = Client(app, runner)
            runner.run(client.service.engine.wait_ready(120))
            yield client
        finally:
            runner.run(life.__aexit__(None, None, None))


def npy(pixels: np.ndarray[Any, Any]) -> bytes:
    """An NPY file."""
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


def dicom(name: str) -> bytes:
    """A file that the pydicom package carries."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), name
    return Path(path).read_bytes()


def changed(body: bytes, *gone: str, **attributes: Any) -> bytes:
    """A DICOM file with attributes changed, or gone."""
    dataset = pydicom.dcmread(io.BytesIO(body))
    for keyword in gone:
        del dataset[keyword]
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def problem(response: httpx.Response) -> dict[str, Any]:
    """The problem document of a refused request."""
    assert response.headers["Content-Type"] == "application/problem+json", response.text
    body: dict[str, Any] = json.loads(response.content)
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body
