"""A PACS in memory, reached through the transport of httpx: DICOMweb as Orthanc answers it, and what a test scripts."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

import httpx
import numpy as np
import pydicom

from tests.dicom_objects import dataset_of, file_of

Rule = Callable[[str, httpx.Request], httpx.Response | None]
BOUNDARY = "fake-pacs"
_PATH = re.compile(r"(?:/studies/(?P<study>[0-9.]+))?(?:/series/(?P<series>[0-9.]+))?(?:/instances/(?P<sop>[0-9.]+))?")


@dataclass(frozen=True)
class Held:
    """An object that the PACS holds."""

    data: bytes
    study: str
    series: str
    sop: str
    sop_class: str
    image_type: list[str]
    number: int
    rows: int | None
    columns: int | None
    frames: int


class FakePacs(httpx.AsyncBaseTransport):
    """Holds objects by SOP Instance UID. `rules` come first: each may answer a call, raise, or let it pass."""

    def __init__(self, overwrite: bool = False) -> None:
        self.objects: dict[str, Held] = {}
        self.calls: list[tuple[str, str]] = []  # verb and path
        self.rules: list[Rule] = []
        self.overwrite = overwrite
        self.stored: list[str] = []  # SOP Instance UIDs as they were sent, repeated ones too

    def add(self, data: bytes) -> str:
        """Takes an object; one with a known UID is dropped, as Orthanc does."""
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        held = Held(
            data,
            dataset.StudyInstanceUID,
            dataset.SeriesInstanceUID,
            dataset.SOPInstanceUID,
            dataset.SOPClassUID,
            list(dataset.get("ImageType") or []),
            int(dataset.get("InstanceNumber") or 0),
            dataset.get("Rows"),
            dataset.get("Columns"),
            int(dataset.get("NumberOfFrames") or 1),
        )
        if self.overwrite or held.sop not in self.objects:
            self.objects[held.sop] = held
        return held.sop

    def series(self, uid: str) -> dict[str, Held]:
        """What it holds of a series."""
        return {sop: held for sop, held in self.objects.items() if held.series == uid}

    def count(self, verb: str) -> int:
        """Calls of "qido", "wado" (one instance), "wado-series" or "stow"."""
        return sum(each == verb for each, _ in self.calls)

    @contextmanager
    def rule(self, rule: Rule) -> Iterator[None]:
        """A rule inside the `with` block."""
        self.rules.insert(0, rule)
        try:
            yield
        finally:
            self.rules.remove(rule)

    @contextmanager
    def answering(self, url: str = "http://pacs") -> Iterator[None]:
        """Services that start inside the `with` block reach it under any address."""

        def connect(peer: Any) -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=self)

        with patch("app.pacs.desk.open_client", connect):
            yield

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._answer(request)
        if not isinstance(answer.stream, httpx.ByteStream):
            return answer
        return httpx.Response(answer.status_code, headers=answer.headers, stream=Pieces(answer.content))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
        match = _PATH.search(request.url.path, request.url.path.find("/studies"))
        assert match is not None
        verb = self._verb(request, match)
        self.calls.append((verb, request.url.path))
        request.extensions["body"] = body  # for rules
        for rule in list(self.rules):
            if (answer := rule(verb, request)) is not None:
                return answer
        if verb == "stow":
            return self._stow(request, body, match["study"])
        if verb == "qido":
            return self._qido(request, match)
        found = [held for held in self.objects.values() if _matches(held, match)]
        if not found:
            return httpx.Response(404, json={})
        return multipart([held.data for held in found])

    def listed(self, request: httpx.Request) -> httpx.Response:
        """What it would answer to a QIDO call, for rules."""
        match = _PATH.search(request.url.path, request.url.path.find("/studies"))
        assert match is not None
        return self._qido(request, match)

    @staticmethod
    def _verb(request: httpx.Request, match: re.Match[str]) -> str:
        if request.method == "POST":
            return "stow"
        if "multipart" not in request.headers.get("accept", ""):
            return "qido"
        return "wado" if match["sop"] else "wado-series"

    def _qido(self, request: httpx.Request, match: re.Match[str]) -> httpx.Response:
        query = parse_qs(request.url.query.decode())
        found = [held for held in self.objects.values() if _matches(held, match)]
        if not request.url.path.endswith("/instances"):
            found = []
        offset, limit = int(query.get("offset", ["0"])[0]), int(query.get("limit", ["100"])[0])
        page = [_row(held) for held in found[offset : offset + limit]]
        return httpx.Response(200, content=json.dumps(page), headers={"Content-Type": "application/dicom+json"})

    def _stow(self, request: httpx.Request, body: bytes, study: str | None) -> httpx.Response:
        stored, failed = [], []
        for data in parts_of(request.headers["content-type"], body):
            dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
            if study not in (None, dataset.StudyInstanceUID):
                failed.append((dataset.SOPInstanceUID, 272))
            else:
                self.stored.append(self.add(data))
                stored.append(dataset.SOPInstanceUID)
        return told(stored, failed, 409 if failed else 200)


def told(stored: list[str], failed: list[tuple[str, int]] = [], status: int = 200) -> httpx.Response:  # noqa: B006
    """The answer to storing."""
    answer: dict[str, Any] = {}
    if stored:
        answer["00081199"] = {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored]}
    if failed:
        answer["00081198"] = {
            "vr": "SQ",
            "Value": [
                {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [code]}}
                for uid, code in failed
            ],
        }
    return httpx.Response(status, content=json.dumps(answer), headers={"Content-Type": "application/dicom+json"})


class Pieces(httpx.AsyncByteStream):
    """A body in pieces that may break off."""

    def __init__(self, data: bytes, keep: int | None = None) -> None:
        self._data = data if keep is None else data[:keep]
        self._broken = keep is not None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._data), 65536):
            yield self._data[start : start + 65536]
        if self._broken:
            raise httpx.ReadError("the connection was lost")


def multipart(files: list[bytes], keep: int | None = None) -> httpx.Response:
    """Objects as Orthanc sends them, broken off after `keep` bytes."""
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + data + b"\r\n" for data in files) + f"--{BOUNDARY}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    return httpx.Response(200, stream=Pieces(body, keep), headers={"Content-Type": kind})


def parts_of(content_type: str, body: bytes) -> list[bytes]:
    """The contents of a multipart body."""
    message = Message()
    message["Content-Type"] = content_type
    delimiter = b"--" + str(message.get_boundary()).encode()
    pieces = body.split(delimiter)[1:-1]
    return [piece.partition(b"\r\n\r\n")[2][:-2] for piece in pieces]


def slices(count: int, series: str = "1.2.3.1", study: str = "1.2.3", side: int = 32, **changes: Any) -> list[bytes]:
    """CT slices of one series, with noise of their own each."""
    made = []
    for index in range(count):
        pixels = np.random.default_rng(index).normal(1000, 60, (side, side)).astype(np.int16)
        attributes = {
            "StudyInstanceUID": study,
            "SeriesInstanceUID": series,
            "SOPInstanceUID": f"{series}.{index + 1}",
            "InstanceNumber": index + 1,
            "PatientID": "P1",
            "PatientName": "Test^Patient",
        }
        made.append(file_of(dataset_of(pixels, **(attributes | changes))))
    return made


def _matches(held: Held, match: re.Match[str]) -> bool:
    wanted = {"study": held.study, "series": held.series, "sop": held.sop}
    return all(match[name] in (None, value) for name, value in wanted.items())


def _row(held: Held) -> dict[str, Any]:
    row: dict[str, Any] = {
        "00080016": {"vr": "UI", "Value": [held.sop_class]},
        "00080018": {"vr": "UI", "Value": [held.sop]},
        "00080008": {"vr": "CS", "Value": held.image_type},
        "00200013": {"vr": "IS", "Value": [held.number]},
        "00280008": {"vr": "IS", "Value": [held.frames]},
    }
    if held.rows and held.columns:
        row |= {"00280010": {"vr": "US", "Value": [held.rows]}, "00280011": {"vr": "US", "Value": [held.columns]}}
    return row
