"""Orthanc's own REST API: its feed of changes, and what rules ask of a series."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from app.pacs.call import Caller, Observe
from app.pacs.errors import PacsGone, PacsMalformed
from app.pacs.peer import Peer
from app.pacs.row import UID, SeriesRow

LOOKS = 5  # instances of a series that are looked at, at most
IDENTIFIER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")


@dataclass(frozen=True)
class Change:
    """One entry of the feed."""

    number: int
    kind: str  # "StableSeries", "NewInstance", ...
    identifier: str  # of the resource, Orthanc's


@dataclass(frozen=True)
class Changes:
    """A page of the feed."""

    entries: list[Change]
    last: int  # where the next page goes on
    done: bool  # there is none yet


@dataclass(frozen=True, kw_only=True)
class SeriesTags(SeriesRow):
    """One series as Orthanc holds it; what is not of series level is of one of its instances."""

    identifier: str
    stable: bool
    header: Mapping[str, Any]  # of one of its instances, by DICOM keyword


class Orthanc:
    """Raises PacsError from every method."""

    def __init__(self, peer: Peer, client: httpx.AsyncClient, observe: Observe | None = None) -> None:
        if peer.orthanc is None:
            raise ValueError("the PACS has no setting `orthanc`")
        self._base = peer.orthanc
        self._call = Caller(peer, client, observe)

    async def changes(self, since: int, limit: int) -> Changes:
        """The entries after number `since`. Beyond the newest there are none, and no error: that a PACS has begun
        anew is told by `last` alone."""
        return changes_of(await self._get("/changes", {"since": since, "limit": limit}))

    async def last(self) -> int:
        """Number of the newest entry, 0 where there is none."""
        return changes_of(await self._get("/changes?last")).last

    async def series(
        self, identifier: str, decides: Callable[[Mapping[str, Any]], bool] = lambda header: True
    ) -> SeriesTags:
        """What rules ask of one series, by Orthanc's identifier. Raises ValueError where it is none.

        The header is that of the first of some instances which `decides`, else of the first.
        """
        if not IDENTIFIER.fullmatch(identifier):
            raise ValueError("not an identifier of Orthanc")
        series = await self._get(f"/series/{identifier}")
        instances = [one for one in _list(_object(series).get("Instances")) if IDENTIFIER.fullmatch(str(one))]
        first: SeriesTags | None = None
        for instance in _some(instances):
            tags = tags_of(identifier, series, await self._get(f"/instances/{instance}/simplified-tags"))
            if decides(tags.header):
                return tags
            first = first or tags
        if first is None:
            raise PacsGone()
        return first

    async def _get(self, path: str, params: dict[str, int] | None = None) -> Any:
        return await self._call.json("orthanc", self._base + path, list(params.items()) if params else None)


def _some(instances: list[str]) -> list[str]:
    """The first, the last, and some between."""
    last = len(instances) - 1
    return list(dict.fromkeys(instances[last * number // (LOOKS - 1)] for number in range(LOOKS))) if instances else []


def tags_of(identifier: str, series: Any, tags: Any) -> SeriesTags:
    """What two answers tell: Orthanc's of the series, and all tags of one instance. Raises PacsMalformed."""
    study, uid = _text(tags, "StudyInstanceUID"), _text(tags, "SeriesInstanceUID")
    if not (UID.fullmatch(study) and UID.fullmatch(uid)):
        raise PacsMalformed("json", "a series without valid UIDs")
    number = _text(tags, "SeriesNumber")
    return SeriesTags(
        identifier=identifier,
        stable=_object(series).get("IsStable") is True,
        study=study,
        series=uid,
        modality=_text(tags, "Modality"),
        body_part=_text(tags, "BodyPartExamined"),
        station=_text(tags, "StationName"),
        description=_text(tags, "SeriesDescription"),
        image_type=tuple(part.strip() for part in _text(tags, "ImageType").split("\\") if part),
        study_date=_text(tags, "StudyDate"),
        number=int(number) if re.fullmatch(r"-?[0-9]{1,11}", number) else None,
        instances=len(_list(_object(series).get("Instances"))),
        header=_object(tags),
    )


def changes_of(answer: Any) -> Changes:
    """A page of the feed. Raises PacsMalformed."""
    page = _object(answer)
    try:
        entries = [Change(int(item["Seq"]), str(item["ChangeType"]), str(item["ID"])) for item in page["Changes"]]
        return Changes(entries, int(page["Last"]), bool(page["Done"]))
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise PacsMalformed("json", "not a page of changes") from exc


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise PacsMalformed("json", "no object where an object was asked for")
    return answer


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(tags: Any, keyword: str) -> str:
    value = tags.get(keyword) if isinstance(tags, dict) else None
    return value.strip(" \0") if isinstance(value, str) else ""
