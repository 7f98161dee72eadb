"""Where PACS jobs are handed in and asked after: the one door for routes, the auto-router and listeners."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module

from app.catalogue import Catalogue
from app.errors import DiskFull, JobNotFound, JobsUnavailable, PacsOff
from app.jobs.engine import JobEngine
from app.jobs.folder import JobFolder
from app.jobs.run import Handler
from app.jobs.store import DATABASE, Job, State
from app.log import event, places
from app.options import Options, check_options, guarded
from app.pacs.call import Observe, open_client
from app.pacs.dicomweb import DicomWeb
from app.pacs.errors import PacsDenied, PacsError
from app.pacs.forward import KIND as DOOR_KIND
from app.pacs.forward import DoorHandler
from app.pacs.instance import Instance, Instances, Outcome
from app.pacs.job import KIND, Connection, PacsHandler
from app.pacs.key import Order
from app.pacs.maker import derived_series, precision_of
from app.pacs.peer import Peer
from app.schemas import PacsRequest
from app.service import Service
from models.errors import BundleError, MedRestoreError, OptionError

LOOK_S = 5.0  # between looks at credentials that were refused, and at the counts that metrics tell
ANSWER_S = 10.0  # that a status waits for a PACS
SWITCHED_OFF = "no PACS is configured here: add a table `[pacs.NAME]` to the settings"


@dataclass(frozen=True)
class PacsJob:
    """A job, and what became of its instances."""

    job: Job
    counts: Mapping[Outcome, int]
    series: str | None  # SeriesInstanceUID of what is stored, None where the model is not served any more

    @property
    def state(self) -> str:
        """One of `app.schemas.PacsState`."""
        return self.job.phase or self.job.state.value

    @property
    def order(self) -> Order:
        return Order(**self.job.parameters)


@dataclass(frozen=True)
class PeerStatus:
    """How one PACS is; `reason` says why it cannot be used."""

    reachable: bool
    authorised: bool | None
    reason: str | None
    jobs: Mapping[str, int]  # by state
    oldest_waiting_s: float | None


class Pacs:
    """The PACS jobs of one service. All methods belong to one event loop."""

    def __init__(self, service: Service, connections: Mapping[str, Connection], jobs: JobEngine | str) -> None:
        """`jobs` is the reason where there are none."""
        self._service = service
        self._connections = connections
        self._engine = jobs
        self._tried: dict[str, str] = {}  # PACS -> mark of the credentials that were tried for its blocked jobs
        self._seen: dict[tuple[str, str], tuple[int, float | None]] = {}

    # -- callers ------------------------------------------------------------------------------

    async def submit(self, request: PacsRequest) -> tuple[PacsJob, bool]:
        """The job for what is asked, and whether it is new.

        The same content is the same job. One that is completed looks at the series again, and adds what is new;
        one that failed or was cancelled stays so until `retry`. Raises PacsOff, JobsUnavailable, OptionError,
        BundleError, QueueFull.
        """
        jobs, order = self.jobs, self._order(request)
        job = await jobs.known(order.key, KIND, order.content)
        id = jobs.new_id()
        if job is None:
            job = await jobs.submit(id, KIND, order.parameters, None, order.key, order.content)
        elif job.state in (State.DONE, State.RUNNING):
            job = await jobs.retry(job.id)
        return await self._view(job), job.id == id

    async def get(self, id: str) -> PacsJob:
        """Raises JobNotFound."""
        return await self._view(await self._find(id))

    async def page(
        self, count: int, state: str | None = None, study: str | None = None, before: tuple[float, str] | None = None
    ) -> list[PacsJob]:
        """The newest jobs, older than (created, id)."""
        parameter = ("study", study) if study else None
        return [await self._view(job) for job in await self.jobs.page(KIND, count, state, parameter, before)]

    async def instances(self, id: str, count: int, after: int = -1, state: str | None = None) -> list[Instance]:
        """Instances of a job behind a position. Raises JobNotFound."""
        await self._find(id)
        return await asyncio.to_thread(self._instances.page, id, count, after, state)

    async def cancel(self, id: str) -> PacsJob:
        """Ends a job that has not ended; what is stored stays. Raises JobNotFound."""
        await self._find(id)
        return await self._view(await self.jobs.cancel(id))

    async def retry(self, id: str) -> PacsJob:
        """Has a job run now, and what failed or was gone tried again. Raises JobNotFound."""
        job = await self._find(id)
        if job.state is not State.RUNNING:
            await asyncio.to_thread(self._instances.reopen, id)
        return await self._view(await self.jobs.retry(id))

    async def watch(self, id: str, every_s: float) -> AsyncIterator[PacsJob]:
        """See `JobEngine.watch`."""
        await self._find(id)
        async for job in self.jobs.watch(id, every_s):
            yield await self._view(job)

    async def status(self) -> tuple[dict[str, PeerStatus], str | None]:
        """Asks every PACS whether it can be used; and why there are no jobs, where that is so. Raises PacsOff."""
        problem = None
        try:
            await self._look()
        except (JobsUnavailable, DiskFull) as error:
            self._seen, problem = {}, str(error)
        found = await asyncio.gather(*(self._probe(connection) for connection in self._connections.values()))
        return {name: self._status(name, error) for name, error in zip(self._connections, found, strict=True)}, problem

    @property
    def jobs(self) -> JobEngine:
        """Raises PacsOff, JobsUnavailable."""
        if not self._connections:
            raise PacsOff(SWITCHED_OFF)
        if isinstance(self._engine, str):
            raise JobsUnavailable(self._engine)
        return self._engine

    # -- metrics ------------------------------------------------------------------------------

    def count(self, state: str) -> float:
        """Jobs in a state, as of the last look."""
        return float(sum(count for (_, each), (count, _) in self._seen.items() if each == state))

    @property
    def oldest_waiting_s(self) -> float | None:
        """How long the job waits that waits the longest, of any PACS."""
        return _oldest(self._seen.values())

    # -- upkeep -------------------------------------------------------------------------------

    async def attend(self) -> None:
        """Counts jobs, and wakes blocked ones when credentials have changed, until it is cancelled."""
        while True:
            try:
                await self._look()
                for name in {pacs for pacs, state in self._seen if state == State.BLOCKED}:
                    await self._try_again(name)
            except MedRestoreError as error:
                event("PACS jobs cannot be looked at", logging.WARNING, reason=str(error))
            except Exception as error:  # noqa: BLE001  (else blocked jobs would rest for ever)
                event("unexpected error", logging.ERROR, **places(error))
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        _ = self.jobs
        self._seen = await asyncio.to_thread(self._instances.jobs_by_status)

    async def _try_again(self, name: str) -> None:
        """Wakes the blocked jobs of a PACS once for each change of its credentials, and at the start."""
        connection = self._connections.get(name)
        if connection is None:
            return
        try:
            mark = await asyncio.to_thread(connection.peer.credential_mark)
        except PacsDenied:
            return  # there is nothing to try
        if self._tried.get(name) == mark:
            return
        error = await self._probe(connection)
        if error is None or isinstance(error, PacsDenied):
            self._tried[name] = mark
        if error is None:
            for job in await self._blocked(name):
                await self.jobs.retry(job.id)

    async def _blocked(self, name: str) -> list[Job]:
        """All of one PACS as of now: one that is blocked anew meanwhile has had its try."""
        found: list[Job] = []
        for kind in (KIND, DOOR_KIND):
            before: tuple[float, str] | None = None
            while page := await self.jobs.page(kind, 100, State.BLOCKED, ("pacs", name), before):
                found += page
                before = page[-1].created, page[-1].id
        return found

    # -- particulars --------------------------------------------------------------------------

    @property
    def _instances(self) -> Instances:
        return Instances(self.jobs.folder.root / DATABASE)

    async def _find(self, id: str) -> Job:
        job = await self.jobs.get(id)
        if job.kind != KIND:
            raise JobNotFound("no such job of this kind")
        return job

    async def _view(self, job: Job) -> PacsJob:
        counts = await asyncio.to_thread(self._instances.counts, job.id)
        return PacsJob(job, counts, await asyncio.to_thread(self._derived_series, job))

    def _derived_series(self, job: Job) -> str | None:
        if job.outcome:
            return str(job.outcome["series"])
        order = Order(**job.parameters)
        try:
            bundle = self._service.catalogue.lookup(order.model, order.operation, order.scale)
        except (BundleError, OptionError):
            return None
        return derived_series(self._service, bundle, order, precision_of(order, bundle, self._service))

    def _order(self, request: PacsRequest) -> Order:
        """Raises PacsOff, OptionError, BundleError."""
        names = list(self._connections)
        if request.pacs is None and len(names) > 1:
            raise OptionError(f"pacs must name one of {', '.join(sorted(names))}")
        pacs = request.pacs or names[0]
        if pacs not in self._connections:
            raise OptionError(f"no such PACS; pacs must name one of {', '.join(sorted(names))}")
        return order_of(request, pacs, self._service.catalogue, self._service.settings.consistency_db)

    async def _probe(self, connection: Connection) -> PacsError | TimeoutError | None:
        """Why a PACS cannot be used, None where it can."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await connection.web.reachable()
        except (PacsError, TimeoutError) as error:
            return error
        return None

    def _status(self, name: str, error: PacsError | TimeoutError | None) -> PeerStatus:
        mine = {state: seen for (pacs, state), seen in self._seen.items() if pacs == name}
        reachable = error is None or isinstance(error, PacsDenied)
        return PeerStatus(
            reachable=reachable,
            authorised=error is None if reachable else None,
            reason=None if error is None else getattr(error, "reason", "timeout"),
            jobs={state: count for state, (count, _) in mine.items()},
            oldest_waiting_s=_oldest(mine.values()),
        )


def order_of(request: PacsRequest, pacs: str, catalogue: Catalogue, consistency_db: float) -> Order:
    """What a request asks for, with everything that it left to the service: `consistency_db` is what strict mode asks
    of a model that promises nothing. Raises OptionError, BundleError."""
    options, denoise = request.options, request.operation == "denoise"
    if denoise and request.scale is not None:
        raise OptionError("scale belongs to superresolve; denoise keeps rows and columns")
    if not denoise and request.scale is None:
        raise OptionError("superresolve needs scale 2 or 4")
    if not denoise and (options.strength is not None or options.sigma is not None):
        raise OptionError("strength and sigma belong to denoising; superresolve takes neither")
    scale = request.scale or 1
    bundle = catalogue.lookup(request.model, request.operation, scale)
    asked = Options(1.0 if options.strength is None else options.strength, options.sigma, options.min_consistency)
    chosen = guarded(asked, options.strict, bundle, consistency_db)
    check_options(chosen, bundle)
    precision = options.precision or "exact"
    content = (request.operation, scale, bundle.reference, bundle.digest, chosen.strength, chosen.sigma, precision)
    return Order(pacs, request.study, request.series, *content, chosen.min_consistency)


@asynccontextmanager
async def connected(peers: Mapping[str, Peer], observe: Observe) -> AsyncIterator[dict[str, Connection]]:
    """Connections to every PACS of the settings, inside the `async with` block."""
    async with AsyncExitStack() as stack:
        connections = {}
        if peers:  # now, by one thread: two that import it at once may each see half of it
            await asyncio.to_thread(import_module, "models.imaging.dicom.head")
        for name, peer in peers.items():
            client = await stack.enter_async_context(await asyncio.to_thread(open_client, peer))
            connections[name] = Connection(peer, DicomWeb(peer, client, observe))
        yield connections


def pacs_handlers(service: Service, connections: Mapping[str, Connection], folder: JobFolder) -> dict[str, Handler]:
    """What runs PACS jobs and those of the door, for `app.jobs.start.working`; nothing without a PACS."""
    instances = Instances(folder.root / DATABASE)
    handler = PacsHandler(service, folder, connections, instances, service.metrics.instance_settled)
    return {KIND: handler, DOOR_KIND: DoorHandler(service, folder, connections)} if connections else {}


@asynccontextmanager
async def attending(
    service: Service, connections: Mapping[str, Connection], jobs: JobEngine | str
) -> AsyncIterator[Pacs]:
    """The desk, attended to inside the `async with` block."""
    pacs = Pacs(service, connections, jobs)
    service.metrics.watch_pacs(pacs)
    task = asyncio.create_task(pacs.attend(), name="pacs") if connections and not isinstance(jobs, str) else None
    try:
        yield pacs
    finally:
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _oldest(seen: Iterable[tuple[int, float | None]]) -> float | None:
    since = [moment for _, moment in seen if moment is not None]
    return max(0.0, time.time() - min(since)) if since else None
