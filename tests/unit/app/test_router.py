"""Auto-routing against a scripted Orthanc, and a scripted DICOMweb server without a feed."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import date, timedelta
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import QueueFull
from app.pacs.candidate import Candidate
from app.pacs.cursor import Cursor, Cursors
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsUnavailable
from app.pacs.feed import ChangeFeed, QueryFeed
from app.pacs.orthanc import Orthanc
from app.pacs.peer import Peer
from app.pacs.router import Router, RouterObserver
from app.pacs.rule import Work
from app.pacs.rulebook import Rulebook
from models.errors import BundleNotFound
from models.imaging.dicom.identity import device_uid

CT = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT", "ImageType": "ORIGINAL\\PRIMARY\\AXIAL"}
OURS = [{"Manufacturer": "MedRestore", "SoftwareVersions": "ab" * 32, "DeviceUID": str(device_uid("ab" * 32))}]
RULES = '[[route]]\nname = "ct"\nwhen = {Modality = "CT"}\noperation = "denoise"\n'
END_S = 20.0


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Lets a test be a coroutine."""

    @wraps(test)
    def call(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return call


def answer(content: Any, status: int = 200) -> httpx.Response:
    """JSON that is still to be read, as from a connection."""
    return httpx.Response(status, stream=httpx.ByteStream(json.dumps(content).encode()))


class ScriptedOrthanc:
    """The parts of Orthanc's API that routing calls."""

    def __init__(self) -> None:
        self.changes: list[tuple[int, str, str]] = []
        self.headers: dict[str, dict[str, Any]] = {}
        self.last = 0
        self.instances: dict[str, list[str]] = {}  # of series that have more than one
        self.down = False
        self.broken: set[str] = set()  # series that cannot be told of
        self.calls = 0

    def add(self, number: int, stable: bool = True, **header: Any) -> str:
        """A new series, UID `1.2.<number>`."""
        identifier = "-".join([f"{number:08x}"] * 5)
        self.headers[identifier] = CT | {"StudyInstanceUID": "1.2", "SeriesInstanceUID": f"1.2.{number}"} | header
        self.change("NewInstance", identifier)
        if stable:
            self.change("StableSeries", identifier)
        return identifier

    def change(self, kind: str, identifier: str) -> None:
        self.last += 1
        self.changes.append((self.last, kind, identifier))

    def delete(self, identifier: str) -> None:
        """As Orthanc does: its changes go, the numbers go on."""
        del self.headers[identifier]
        self.changes = [change for change in self.changes if change[2] != identifier]

    def reset(self) -> None:
        """A new, empty database."""
        self.changes, self.headers, self.last = [], {}, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        if self.down:
            raise httpx.ConnectError("refused")
        path, query = request.url.path, request.url.params
        if path == "/changes":
            since, limit = int(query.get("since", 0)), int(query.get("limit", 100))
            found = self.changes[-1:] if "last" in query else [c for c in self.changes if c[0] > since]
            page = [{"Seq": n, "ChangeType": kind, "ID": id, "Date": ""} for n, kind, id in found[:limit]]
            done = len(found) <= limit
            return answer({"Changes": page, "Done": done, "Last": self._last(page, done)})
        identifier = path.split("/")[2]
        if identifier not in self.headers:
            return answer({}, 404)
        if identifier in self.broken:
            return answer({}, 500)
        series = {"Instances": self.instances.get(identifier, [identifier]), "IsStable": True}
        return answer(self.headers[identifier] if path.endswith("tags") else series)

    def _last(self, page: list[dict[str, Any]], done: bool) -> int:
        return self.last if done or not page else int(page[-1]["Seq"])


class Bench(RouterObserver):
    """A router with what it did."""

    def __init__(self, tmp_path: Path, every_s: float = 0.01) -> None:
        self.rules = tmp_path / "rules.toml"
        self.rules.write_text(RULES)
        self.orthanc = ScriptedOrthanc()
        self.cursors = Cursors(tmp_path / "routing.sqlite3")
        self.every_s = every_s
        self.jobs: list[tuple[str, str]] = []  # PACS, series
        self.decisions: Counter[str] = Counter()
        self.lag = -1
        self.derived: set[str] = set()
        self.refusal: Exception | None = None

    def series_judged(self, pacs: str, decision: str) -> None:
        self.decisions[decision] += 1

    def feed_read(self, pacs: str, lag: int) -> None:
        self.lag = lag

    async def submit(self, pacs: str, candidate: Candidate, work: Work) -> tuple[str, bool]:
        if self.refusal:
            raise self.refusal
        created = (pacs, candidate.series) not in self.jobs
        self.jobs += [(pacs, candidate.series)] if created else []
        return "job", created

    async def known(self, pacs: str, series: str) -> bool:
        return series in self.derived

    @asynccontextmanager
    async def routing(self, **more: Callable[[httpx.Request], Any]) -> AsyncIterator[Router]:
        """A router of the PACS `main`, and of others by their servers."""
        feeds = {}
        servers = {"main": self.orthanc, **more}
        clients = {name: httpx.AsyncClient(transport=httpx.MockTransport(server)) for name, server in servers.items()}
        for name, client in clients.items():
            peer = Peer(url="http://pacs/web", orthanc="http://pacs", retries=0)
            feeds[name] = ChangeFeed(name, Orthanc(peer, client), self.cursors)
        router = Router(feeds, Rulebook(self.rules, lambda _: None), self.submit, self.known, self.every_s, self)
        router.start()
        try:
            yield router
        finally:
            await router.stop()
            for client in clients.values():
                await client.aclose()


@pytest.fixture
def bench(tmp_path: Path):
    bench = Bench(tmp_path)
    yield bench
    bench.cursors.close()


async def until(wanted: Callable[[], object]) -> None:
    async with asyncio.timeout(END_S):
        while not wanted():
            await asyncio.sleep(0.005)


async def begun(bench: Bench) -> None:
    """The feed has a cursor."""
    await until(lambda: bench.cursors.get("main"))


@run
async def test_takes_what_is_new_and_nothing_that_was_there_before(bench: Bench) -> None:
    bench.orthanc.add(1)
    async with bench.routing():
        await begun(bench)
        bench.orthanc.add(2, Modality="MR")
        bench.orthanc.add(3)
        bench.orthanc.add(4, stable=False)
        await until(lambda: sum(bench.decisions.values()) == 2)
    assert bench.jobs == [("main", "1.2.3")]
    assert bench.decisions == {"taken": 1, "unmatched": 1}
    assert bench.lag == 0


@run
async def test_goes_on_where_it_was_after_a_restart(bench: Bench) -> None:
    async with bench.routing():
        await begun(bench)
        bench.orthanc.add(1)
        await until(lambda: bench.jobs)
    bench.orthanc.add(2)
    async with bench.routing():
        await until(lambda: len(bench.jobs) == 2)
    assert bench.decisions == {"taken": 2}


@run
async def test_a_webhook_has_the_feed_read_at_once_and_a_lost_one_costs_one_interval(bench: Bench) -> None:
    bench.every_s = 3600
    async with bench.routing() as router:
        await begun(bench)
        await until(lambda: router.states["main"].read)
        bench.orthanc.add(1)
        router.wake()
        await until(lambda: bench.jobs)
    bench.every_s = 0.01
    async with bench.routing():
        bench.orthanc.add(2)
        await until(lambda: len(bench.jobs) == 2)


@run
async def test_duplicates_are_one_job(bench: Bench) -> None:
    async with bench.routing():
        await begun(bench)
        identifier = bench.orthanc.add(1)
        bench.orthanc.change("StableSeries", identifier)
        await until(lambda: bench.jobs)
        bench.orthanc.change("StableSeries", identifier)
        await until(lambda: bench.decisions["repeated"])
    assert bench.jobs == [("main", "1.2.1")]


@pytest.mark.parametrize("refilled", [1, 9])
@run
async def test_a_database_that_began_anew_is_read_from_its_beginning(bench: Bench, refilled: int) -> None:
    async with bench.routing():
        await begun(bench)
        bench.orthanc.add(1)
        bench.orthanc.add(2)
        await until(lambda: len(bench.jobs) == 2)
    bench.orthanc.reset()
    for number in range(10, 10 + refilled):
        bench.orthanc.add(number)
    async with bench.routing():
        await until(lambda: len(bench.jobs) == 2 + refilled)


@run
async def test_deleting_is_no_new_beginning(bench: Bench) -> None:
    async with bench.routing():
        await begun(bench)
        kept, gone = bench.orthanc.add(1), bench.orthanc.add(2)
        await until(lambda: len(bench.jobs) == 2)
        bench.orthanc.delete(gone)
        calls = bench.orthanc.calls
        await until(lambda: bench.orthanc.calls > calls + 6)
        bench.orthanc.delete(kept)
        bench.orthanc.add(3)
        await until(lambda: len(bench.jobs) == 3)
    assert bench.decisions == {"taken": 3}


@run
async def test_a_pacs_that_is_down_holds_up_no_other_and_is_read_when_it_is_back(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr("app.pacs.router.BACKOFF_S", 0.001)
    other = ScriptedOrthanc()
    async with bench.routing(other=other) as router:
        await begun(bench)
        await until(lambda: bench.cursors.get("other"))
        bench.orthanc.down = True
        await until(lambda: router.states["main"].problem)
        bench.orthanc.add(1)
        other.add(2)
        await until(lambda: bench.jobs)
        assert bench.jobs == [("other", "1.2.2")]
        bench.orthanc.down = False
        await until(lambda: len(bench.jobs) == 2)
        await until(lambda: router.states["main"].problem is None)


@run
async def test_pauses_grow_while_a_pacs_is_down_and_a_webhook_does_not_shorten_them(bench: Bench, monkeypatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0 if len(pauses) < 10 else 3600)

    bench.orthanc.down = True
    async with bench.routing() as router:
        monkeypatch.setattr("app.pacs.router.asyncio.sleep", noted)
        async with asyncio.timeout(END_S):
            while len(pauses) < 10:
                router.wake()
                await sleep(0.005)
    assert all(late > early for early, late in pairwise(pauses[:6]))
    assert max(pauses) <= 72


@pytest.mark.parametrize(
    ("decision", "header"),
    [
        ("ours", {"ContributingEquipmentSequence": OURS}),
        ("localizer", {"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}),
        ("derived", {"ImageType": "DERIVED\\PRIMARY\\AXIAL"}),
        ("screen", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("report", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR"}),
    ],
)
@run
async def test_what_no_rule_may_take_is_counted_by_its_reason(
    bench: Bench, decision: str, header: dict[str, Any]
) -> None:
    bench.rules.write_text('[[route]]\nname = "all"\nwhen = {}\noperation = "denoise"\n')
    async with bench.routing():
        await begun(bench)
        bench.orthanc.add(1, **header)
        await until(lambda: bench.decisions)
    assert bench.decisions == {decision: 1}
    assert bench.jobs == []


@run
async def test_a_localizer_in_front_does_not_hide_the_images_behind_it(bench: Bench) -> None:
    async with bench.routing():
        await begun(bench)
        series = bench.orthanc.add(1, stable=False, ImageType="ORIGINAL\\PRIMARY\\LOCALIZER")
        image = bench.orthanc.add(2, stable=False, SeriesInstanceUID="1.2.1")
        bench.orthanc.instances[series] = [series] * 3 + [image] * 9
        bench.orthanc.change("StableSeries", series)
        await until(lambda: bench.decisions)
    assert bench.jobs == [("main", "1.2.1")]


@run
async def test_a_cursor_of_another_kind_of_feed_begins_anew_and_restores_no_archive(bench: Bench) -> None:
    """A PACS that gets, or loses, its setting `orthanc`."""
    web, taken = ScriptedWeb(), []
    web.counts = {f"1.2.{n}": 1 for n in range(5)}

    async def take(candidate: Candidate) -> None:
        taken.append(candidate.series)

    bench.cursors.put("main", Cursor(52, "StableSeries x"))
    async with httpx.AsyncClient(transport=httpx.MockTransport(web)) as client:
        feed = QueryFeed("main", DicomWeb(Peer(url="http://pacs/web", retries=0), client), bench.cursors, 0.0, 2)
        for _ in range(3):
            await feed.poll(take, pytest.fail)
    assert (taken, set(web.asked)) == ([], {f"{date.today() - timedelta(days=2):%Y%m%d}-"})
    bench.orthanc.add(1)
    async with bench.routing():
        await until(lambda: bench.lag == 0)
        bench.orthanc.add(2)
        await until(lambda: bench.jobs)
    assert bench.jobs == [("main", "1.2.2")]


@run
async def test_a_series_that_a_job_made_is_not_taken_whatever_its_header_says(bench: Bench) -> None:
    bench.derived = {"1.2.1"}
    async with bench.routing():
        await begun(bench)
        bench.orthanc.add(1)
        await until(lambda: bench.decisions)
    assert bench.decisions == {"ours": 1}


@run
async def test_a_full_queue_keeps_the_series_and_a_missing_model_does_not_keep_others(
    bench: Bench, monkeypatch
) -> None:
    monkeypatch.setattr("app.pacs.router.BACKOFF_S", 0.001)
    async with bench.routing() as router:
        await begun(bench)
        bench.refusal = QueueFull("jobs", 0.001)
        bench.orthanc.add(1)
        await until(lambda: router.states["main"].problem)
        bench.refusal = None
        await until(lambda: bench.jobs)
        bench.refusal = BundleNotFound("no such model")
        bench.orthanc.add(2)
        await until(lambda: bench.decisions["failed"])
        bench.refusal = None
        bench.orthanc.add(3)
        await until(lambda: len(bench.jobs) == 2)
    assert [series for _, series in bench.jobs] == ["1.2.1", "1.2.3"]


@run
async def test_a_series_that_is_gone_or_cannot_be_read_is_left_out(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr("app.pacs.router.BACKOFF_S", 0.001)
    async with bench.routing():
        await begun(bench)
        bench.orthanc.add(4, ContributingEquipmentSequence=["no item", 5])
        bench.orthanc.change("StableSeries", "no identifier")
        bench.orthanc.broken.add(bench.orthanc.add(1))
        del bench.orthanc.headers[bench.orthanc.add(2)]
        bench.orthanc.add(3)
        await until(lambda: bench.jobs)
    assert bench.jobs == [("main", "1.2.3")]
    assert bench.decisions == {"unreadable": 3, "gone": 1, "taken": 1}


@run
async def test_nothing_is_passed_over_while_the_rules_are_broken_from_the_start(bench: Bench) -> None:
    async with bench.routing():
        await begun(bench)
    bench.rules.write_text("[[route")
    bench.orthanc.add(1)
    async with bench.routing() as router:
        await until(lambda: router.rulebook.problem)
        assert not bench.decisions
        bench.rules.write_text(RULES + "# whole again\n")
        await until(lambda: bench.jobs)


@run
async def test_a_long_feed_is_read_page_by_page(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr("app.pacs.feed.PAGE", 4)
    async with bench.routing() as router:
        await begun(bench)
        for number in range(1, 14):
            bench.orthanc.add(number)
        await until(lambda: len(bench.jobs) == 13)
        bench.orthanc.change("StableSeries", "no identifier")
        bench.orthanc.add(14, ContributingEquipmentSequence=["no item", 5])
        [(_, verdict)] = await router.recent("main", 1)
        assert verdict.decision == "unreadable"
        bench.orthanc.delete("-".join(["0000000e"] * 5))
        found = await router.recent("main", 6)  # one of them cannot be told of
        assert [candidate.series for candidate, _ in found] == [f"1.2.{n}" for n in range(13, 8, -1)]
        assert len(await router.recent("main", 50)) == 13


@run
async def test_a_dry_run_tells_the_route_or_why_none(bench: Bench) -> None:
    bench.rules.write_text(RULES + '[[route]]\nname = "big"\nwhen = {min_instances = 9}\noperation = "denoise"\n')
    async with bench.routing() as router:
        await begun(bench)
        for header in ({"Modality": "CT"}, {"Modality": "MR"}, {"ImageType": "DERIVED\\PRIMARY"}):
            bench.orthanc.add(len(bench.orthanc.headers) + 1, **header)
        derived, other, taken = [verdict for _, verdict in await router.recent("main", 10)]
    assert (taken.decision, taken.route and taken.route.name) == ("taken", "ct")
    assert (other.decision, other.unmet) == (
        "unmatched",
        {"ct": "Modality is not CT", "big": "1 of at least 9 instances"},
    )
    assert derived.decision == "derived"


class ScriptedWeb:
    """A DICOMweb server: series by UID, each with a number of instances."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.tells_counts = True
        self.broken: dict[str, int] = {}  # series that cannot be told of -> status
        self.day = date.today()
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, query = request.url.path, request.url.params
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 1000))
        if path == "/web/series":
            self.asked.append(query["StudyDate"])
            rows = [self._row(series) for series in sorted(self.counts)]
            return answer(rows[offset : offset + limit])
        series = re.split("/", path)[5]
        if series in self.broken:
            return answer({}, self.broken[series])
        if path.endswith("metadata"):
            return answer([{"00080060": _value("CS", "CT"), "00080008": _value("CS", "ORIGINAL", "PRIMARY")}])
        instances = [{"00080018": _value("UI", f"{series}.{n}")} for n in range(self.counts[series])]
        return answer(instances[offset : offset + limit])

    def _row(self, series: str) -> dict[str, Any]:
        row = {"0020000D": _value("UI", "1.2"), "0020000E": _value("UI", series), "00080060": _value("CS", "CT")}
        return row | ({"00201209": _value("IS", self.counts[series])} if self.tells_counts else {})


def _value(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}


@pytest.mark.parametrize("tells_counts", [True, False])
@run
async def test_without_a_feed_a_series_is_taken_when_its_count_stays(bench: Bench, tells_counts: bool) -> None:
    web = ScriptedWeb()
    web.tells_counts, web.counts = tells_counts, {"1.2.0": 4}
    async with httpx.AsyncClient(transport=httpx.MockTransport(web)) as client:
        feed = QueryFeed("plain", DicomWeb(Peer(url="http://pacs/web", retries=0), client), bench.cursors, 0.0, 2)
        taken: list[tuple[str, int]] = []

        async def take(candidate: Candidate) -> None:
            taken.append((candidate.series, candidate.instances))
            assert candidate.header["ImageType"] == "ORIGINAL\\PRIMARY"

        async def poll() -> None:
            await feed.poll(take, lambda why: pytest.fail(why))

        await poll()
        web.counts["1.2.1"] = 2
        await poll()
        assert (taken, feed.lag) == ([], 1)
        web.counts["1.2.1"] = 3  # grows
        await poll()
        assert taken == []
        await poll()
        await poll()
        assert (taken, feed.lag) == ([("1.2.1", 3)], 0)
        web.counts["1.2.1"] = 5  # grows after it was stable
        await poll()
        await poll()
        assert taken[1:] == ([("1.2.1", 5)] if tells_counts else [])
        assert [c.series for c in await feed.recent(9)] == ["1.2.0", "1.2.1"]
    two_days_ago = date.today() - timedelta(days=2)
    assert set(web.asked) == {f"{two_days_ago:%Y%m%d}-"}


@run
async def test_a_series_whose_job_must_wait_is_offered_again(bench: Bench) -> None:
    web = ScriptedWeb()
    async with httpx.AsyncClient(transport=httpx.MockTransport(web)) as client:
        feed = QueryFeed("plain", DicomWeb(Peer(url="http://pacs/web", retries=0), client), bench.cursors, 0.0, 2)
        taken: list[str] = []

        async def refuse(candidate: Candidate) -> None:
            raise QueueFull("jobs", 1.0)

        async def take(candidate: Candidate) -> None:
            taken.append(candidate.series)

        await feed.poll(take, pytest.fail)
        web.counts["1.2.1"] = 1
        await feed.poll(take, pytest.fail)
        with pytest.raises(QueueFull):
            await feed.poll(refuse, pytest.fail)
        await feed.poll(take, pytest.fail)
        del web.counts["1.2.1"]
        await feed.poll(take, pytest.fail)
        assert bench.cursors.seen("plain") == {}
    assert taken == ["1.2.1"]


@run
async def test_one_series_that_cannot_be_told_of_does_not_hold_up_the_others(bench: Bench) -> None:
    web, taken, left = ScriptedWeb(), [], []
    async with httpx.AsyncClient(transport=httpx.MockTransport(web)) as client:
        feed = QueryFeed("plain", DicomWeb(Peer(url="http://pacs/web", retries=0), client), bench.cursors, 0.0, 2)

        async def take(candidate: Candidate) -> None:
            taken.append(candidate.series)

        async def poll() -> None:
            with suppress(PacsUnavailable):
                await feed.poll(take, left.append)

        await poll()
        web.counts = {"1.2.1": 1, "1.2.2": 1, "no UID": 1, "1.2.3": 1}
        web.broken = {"1.2.1": 500, "1.2.2": 400}
        for _ in range(8):
            await poll()
        del web.broken["1.2.1"]
        assert [c.series for c in await feed.recent(9)] == ["1.2.1", "1.2.3"]
    assert (taken, left) == (["1.2.3"], ["unreadable", "unreadable"])
