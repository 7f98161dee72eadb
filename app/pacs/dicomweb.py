"""DICOMweb (PS3.18) as a client: QIDO-RS, WADO-RS and STOW-RS of one configured PACS."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.pacs import row
from app.pacs.call import JSON, Caller, Observe, Params, judge, parse, pieces, whole
from app.pacs.errors import PacsError, PacsMalformed, PacsRefused
from app.pacs.multipart import Body, Reader, boundary_of, save_parts
from app.pacs.peer import Peer
from app.pacs.row import INSTANCE_FIELDS, SERIES_FIELDS, UID, InstanceRow, SeriesRow, instance_row, series_row
from app.pacs.row import header as header_of

STORED_TYPE = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as stored, never transcoded
NOBODY = "2.25.0"  # a study that nobody has: the cheapest question


@dataclass(frozen=True)
class Failure:
    """Why an instance was not stored: FailureReason (PS3.18 table I.2-2, PS3.4 B.2.3), None where not told."""

    code: int | None

    @property
    def temporary(self) -> bool:
        """Out of resources (A7xx): the same instance may be taken later."""
        return self.code is not None and 0xA700 <= self.code <= 0xA7FF

    def __str__(self) -> str:
        return "no reason told" if self.code is None else REASONS.get(self.code, _family(self.code))


REASONS = {
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0112: "no such SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0xC122: "transfer syntax not supported",
}


def _family(code: int) -> str:
    name = {0xA7: "out of resources", 0xA9: "data set does not match SOP class"}.get(code >> 8)
    return name or ("cannot understand" if code >> 12 == 0xC else f"failure {code:#06x}")


@dataclass
class Stored:
    """What became of stored instances, by SOP Instance UID; one that is in neither was not told of."""

    stored: set[str] = field(default_factory=set)
    failed: dict[str, Failure] = field(default_factory=dict)

    def add(self, other: Stored) -> None:
        """Takes up what another call told."""
        self.stored |= other.stored
        self.failed |= other.failed


class DicomWeb:
    """Raises PacsError, and ValueError for an argument that is no UID, from every method."""

    def __init__(self, peer: Peer, client: httpx.AsyncClient, observe: Observe | None = None) -> None:
        self._peer = peer
        self._call = Caller(peer, client, observe)

    async def reachable(self) -> None:
        """Returns where the PACS answers and lets the service in."""
        await self._query("/studies", [("StudyInstanceUID", NOBODY), ("limit", 1)])

    async def series(self, filters: Mapping[str, str], limit: int, offset: int = 0) -> list[SeriesRow]:
        """One page of the series that match all of `filters`, which are DICOM keywords and matching values.

        Rows without valid UIDs are left out: nobody could ask for such a series.
        """
        params: Params = [*filters.items(), *(("includefield", name) for name in SERIES_FIELDS)]
        page = await self._query("/series", [*params, ("limit", limit), ("offset", offset)])
        return [found for item in page if (found := series_row(item))]

    async def instances(self, study: str, series: str) -> AsyncGenerator[InstanceRow, None]:
        """All instances of a series, asked for page by page, each told once.

        Raises PacsMalformed where the PACS repeats a full page, so that nobody can tell whether that is all.
        """
        path = f"/studies/{_uid(study)}/series/{_uid(series)}/instances"
        fields: Params = [("includefield", name) for name in INSTANCE_FIELDS]
        seen: set[str] = set()
        offset = 0
        while page := await self._query(path, [*fields, ("limit", self._peer.page), ("offset", offset)]):
            fresh = {one.sop_instance: one for one in map(instance_row, page) if one.sop_instance not in seen}
            if not fresh and len(page) == self._peer.page == len(seen):
                raise PacsMalformed("paging", "it repeats a full page whatever the offset")
            if not fresh:
                return
            seen.update(fresh)
            for one in fresh.values():
                yield one
            offset += len(page)

    async def header(self, study: str, series: str, instance: str) -> dict[str, Any]:
        """What rules ask of an instance, by DICOM keyword; see `app.pacs.row.header`."""
        path = f"/studies/{_uid(study)}/series/{_uid(series)}/instances/{_uid(instance)}/metadata"
        return header_of(next(iter(await self._query(path, [])), {}))

    async def retrieve_series(self, study: str, series: str, folder: Path) -> AsyncGenerator[Path, None]:
        """Streams a series into files of `folder`, as stored; a path is told when its file is whole.

        The stream pauses while the caller is busy with a path; Orthanc bears with 30 seconds of that, then breaks
        off. Where it breaks off, what was told stays valid and the error is raised: `retrieve` gets the rest.
        Use `contextlib.aclosing` to leave early.
        """
        url = f"{self._peer.url}/studies/{_uid(study)}/series/{_uid(series)}"
        paths = (folder / f"{index:06}.dcm" for index in itertools.count())
        async with AsyncExitStack() as stack:
            response = await self._call.attempts(
                lambda: stack.enter_async_context(self._call.answer("wado", url, accept=STORED_TYPE, streamed=True))
            )
            parts = await stack.enter_async_context(aclosing(self._parts(response, paths)))
            while path := await self._call.limited(anext(parts, None)):
                yield path

    async def retrieve(self, study: str, series: str, instance: str, path: Path) -> None:
        """Fetches one instance as stored; `path` appears when it is whole."""
        url = f"{self._peer.url}/studies/{_uid(study)}/series/{_uid(series)}/instances/{_uid(instance)}"

        async def work() -> None:
            try:
                async with self._call.answer("wado", url, accept=STORED_TYPE) as response:
                    if not [part async for part in self._parts(response, iter([path]))]:
                        raise PacsMalformed("multipart", "a body without an instance")
            except PacsError:
                path.unlink(missing_ok=True)
                raise

        await self._call.attempts(work)

    async def store(self, study: str, files: Sequence[Path]) -> Stored:
        """Stores DICOM files of one study, in batches of the peer's `stow_items` and `stow_bytes`.

        Storing again is harmless. Where a batch raises, what earlier ones told is lost: who must know hands in
        one batch a call. Raises OSError where a file cannot be read.
        """
        url = f"{self._peer.url}/studies/{_uid(study)}"
        result = Stored()
        for batch in batches(files, self._peer.stow_items, self._peer.stow_bytes):
            result.add(await self._store(url, batch))
        return result

    async def _store(self, url: str, files: Sequence[Path]) -> Stored:
        async def work() -> Stored:
            async with self._call.answer("stow", url, accept=JSON, body=Body(files)) as response:
                return await read_stored(response)

        try:
            return await self._call.attempts(work)
        except PacsRefused as error:
            if error.reason != "too-large" or len(files) == 1:
                raise
        result = await self._store(url, files[: len(files) // 2])  # a proxy's limit, most likely
        result.add(await self._store(url, files[len(files) // 2 :]))
        return result

    async def _query(self, path: str, params: Params) -> list[Any]:
        page = await self._call.json("qido", self._peer.url + path, params)
        if not isinstance(page, list | None):
            raise PacsMalformed("json", "no list where a list was asked for")
        return page or []

    def _parts(self, response: httpx.Response, paths: Iterator[Path]) -> AsyncGenerator[Path, None]:
        boundary = boundary_of(response.headers.get("content-type", ""))
        return save_parts(pieces(response), Reader(boundary, self._peer.instance_bytes), paths)


def batches(files: Sequence[Path], items: int, limit_bytes: int) -> Iterator[list[Path]]:
    """Cuts `files`, in order, into batches within both limits; a larger file goes alone."""
    batch: list[Path] = []
    total = 0
    for path in files:
        size = path.stat().st_size
        if batch and (len(batch) == items or total + size > limit_bytes):
            yield batch
            batch, total = [], 0
        batch.append(path)
        total += size
    if batch:
        yield batch


async def read_stored(response: httpx.Response) -> Stored:
    """Both sequences of a STOW answer (PS3.18 table 10.5.3-2), whatever the status; Orthanc sends 400 without a
    media type where one part of many was garbage. Raises PacsError where the answer tells of no instance."""
    if response.status_code in (401, 403, 407, 408, 429, 503):
        judge(response)
    try:
        told = stored_of(parse(await whole(response)))
    except PacsMalformed:
        judge(response)
        raise
    if not told.stored and not told.failed:
        judge(response)
        raise PacsMalformed("answer", "the answer to storing tells of no instance", response.status_code)
    return told


def stored_of(answer: Any) -> Stored:
    """The outcome by ReferencedSOPSequence and FailedSOPSequence. An instance in both has failed."""
    failures, references = row.values(answer, "00081198"), row.values(answer, "00081199")
    failed = {row.text(item, "00081155"): Failure(row.number(item, "00081197")) for item in failures}
    stored = {row.text(item, "00081155") for item in references}
    failed.pop("", None)
    return Stored(stored - set(failed) - {""}, failed)


def _uid(text: str) -> str:
    if not UID.fullmatch(text):
        raise ValueError("not a UID")
    return text
