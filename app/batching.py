"""The engine: a bounded queue in front of supervised worker processes.

An item is accepted (or refused: QueueFull, NotReady), waits in `WorkQueue`, and leaves it in a batch
as soon as a worker is idle: nothing is held back to fill a batch, so a lone item never waits while a
worker rests. Every accepted item is completed exactly once, in `_finish`, on every path.

A batch is closed by what is there when a worker is idle, by its pixels, or by its count. Its tiles may
belong to different requests; they are of one shape, so that nothing is padded for the sake of another.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from app.admission import Admission, QueueLimits, Room, Usage
from app.catalogue import Catalogue
from app.change import Change
from app.errors import (
    BackendUnavailable,
    Cancelled,
    DeadlineExceeded,
    NotReady,
    Quarantined,
    QueueFull,
    RunFailed,
    ServiceError,
    WorkerLost,
)
from app.handle import Patience
from app.loader import Loader
from app.observer import EngineObserver
from app.quarantine import Quarantine
from app.queue import Entry, WorkQueue
from app.succession import Succession
from app.supervisor import Supervisor, WorkerStatus, cores
from app.work import Answer, Array, Priority, WorkItem
from app.workers import Model, WorkerDeathError
from models.bundle import Bundle
from models.errors import MedRestoreError

__all__ = [
    "Admission",
    "Answer",
    "Engine",
    "EngineConfig",
    "EngineObserver",
    "Patience",
    "Priority",
    "QueueLimits",
    "WorkItem",
    "WorkerStatus",
]

ATTEMPTS = 2  # runs that may end a worker before the item is given up
MARGIN = 2.0  # on the estimate that a deadline is held against: what comes later may be more urgent, or be larger
EXPIRED = "the deadline passed before the work was done"


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs; the defaults serve on the CPU."""

    devices: tuple[str, ...] = ("cpu",)  # one worker process each
    backends: Mapping[str, str] = field(default_factory=lambda: {"fp32": "onnx", "bf16": "openvino"})  # by precision
    preload: tuple[str, ...] = ("fp32",)  # precisions loaded and self-tested before ready; others at first use
    threads: int | None = None  # of each worker; None: the cores that are there, shared out
    limits: QueueLimits = field(default_factory=QueueLimits)
    # Of one run at most, by precision; 1 for a model whose items' bytes would depend on it, as tried when it is loaded.
    batch_items: Mapping[str, int] = field(default_factory=lambda: {"fp32": 8, "bf16": 8})
    batch_pixels: int = 2 * 256 * 256  # of one run, unless a single item has more
    ageing_s: float = 10.0  # a routine item goes before an interactive one that came this much later; bulk, twice
    patience: Patience = field(default_factory=Patience)


@dataclass(eq=False, kw_only=True)
class Pending(Entry):
    """An entry with what the engine needs to complete it."""

    future: asyncio.Future[Answer]
    accepted: float  # seconds of the loop's clock
    admission: Admission
    owned: bool  # the admission is the entry's own, since the item brought none
    timer: asyncio.TimerHandle | None = None
    done: bool = False
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model = Model(self.item.digest, self.item.precision)


class Engine:
    """Runs work items on worker processes. All methods belong to one event loop."""

    def __init__(
        self, catalogue: Catalogue, config: EngineConfig = EngineConfig(), observer: EngineObserver | None = None
    ) -> None:
        self.catalogue = catalogue
        self.config = config
        self.observer = observer or EngineObserver()
        self._queue: WorkQueue[Pending] = WorkQueue()
        self._room = Room(config.limits)
        self._entries: set[Pending] = set()  # accepted and unfinished, waiting or running
        self._quarantine = Quarantine()
        self.callers: Callable[[], int] = lambda: 0  # whose requests are being received, worked on or answered
        self._order = 0
        self._threads = config.threads or max(1, cores() // len(config.devices))
        self._change = Change()
        self._loader = Loader(
            catalogue, config.devices, config.backends, config.preload, config.batch_items, config.batch_pixels
        )
        self._workers: list[Supervisor] = []
        self.succession = Succession(catalogue, self._loader, self._workers, self._new_worker, self._change)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the workers and returns at once; `ready` turns true when one has passed its self-tests."""
        for device in self.config.devices:
            worker = self._new_worker(device, self._notice)
            self._workers.append(worker)
            self._tasks.append(asyncio.create_task(self._keep(worker), name=f"worker {device}"))

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Raises NotReady with the reason where no worker becomes ready, or not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready:
                    if self._stopped or all(worker.state == "failed" for worker in self._workers):
                        raise NotReady(self.reason or "")
                    await self._change.wait()
        except TimeoutError:
            raise NotReady(self.reason or "") from None

    async def stop(self) -> None:
        """Fails what is unfinished with NotReady and ends the workers, busy ones at once."""
        self._stopped = True
        for entry in list(self._entries):
            self._finish(entry, NotReady("the service is shutting down"), "stopped")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        self._change.tell()

    # -- state --------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """True while some worker takes work and some bundle is served."""
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why it is not ready, or None."""
        if self._stopped:
            return "the service is shutting down"
        if not any(worker.usable for worker in self._workers):
            details = [f"{worker.device} {worker.state} {worker.detail}".strip() for worker in self._workers]
            return f"no worker is ready: {'; '.join(details) or 'not started'}"
        return None if self.catalogue.bundles else "no model is served"

    @property
    def workers(self) -> list[WorkerStatus]:
        return [worker.status for worker in self._workers]

    @property
    def queued_items(self) -> int:
        return self._queue.items

    @property
    def queued_pixels(self) -> int:
        return self._queue.pixels

    @property
    def running_items(self) -> int:
        return len(self._entries) - self._queue.items

    @property
    def backlog_s(self) -> float:
        """Estimated seconds until all that is admitted now, and all that is still being received, is done."""
        arriving = max(0, self.callers() - self.requests - 1)
        return (self._room.backlog_s + arriving * self._room.drain.request_s) * self._factor

    @property
    def _factor(self) -> float:
        """Seconds that pass for a second of a worker's time."""
        working = sum(worker.state in ("idle", "busy") for worker in self._workers)
        return self._room.drain.factor or 1 / max(1, working)

    @property
    def requests(self) -> int:
        """Requests that are admitted and not yet answered."""
        return len(self._room.awaited)

    def supports(self, bundle: Bundle, precision: str) -> bool:
        """Whether `submit` would take the precision; one not yet loaded may still turn out to be refused."""
        return self._loader.objection(bundle, precision) is None

    # -- work ---------------------------------------------------------------------------------

    def admit(
        self,
        usage: Usage,
        model: Hashable = None,
        pixels: int | None = None,
        deadline: float | None = None,
        background: bool = False,
    ) -> Admission:
        """Books room for a whole request, so that it is refused before its first tile or not at all.

        `usage` is what it has in the queue at most, `pixels` the size of the whole request, by which, and by
        the `model`, the time is told that it takes; `deadline` is in seconds of `time.monotonic()`. Nobody
        waits for what is in the `background`.
        Hand it to each of the request's items, and leave its `with` block when they are done. Raises
        QueueFull, NotReady.
        """
        if self.reason is not None:
            self.observer.shed("not_ready")
            raise NotReady(self.reason)
        if overflow := self._room.overflow(usage):
            what, share = overflow
            raise self.full(what, share * self.backlog_s)
        pixels = usage.pixels if pixels is None else pixels
        self.refuse_late(deadline, self._room.paces.seconds_for(model, pixels))
        wait_s, admission = self.backlog_s, self._room.take(usage, model, pixels, background)
        admission.wait_s = wait_s
        return admission

    def refuse_late(self, deadline: float | None, work_s: float | None = None) -> None:
        """Raises QueueFull where an answer would come too late that takes `work_s` of a worker's time, or as much as
        others did. Where nothing else is done it may try: else a bad estimate would never be put right."""
        if deadline is None or not self.requests:
            return
        own_s = self._room.drain.request_s if work_s is None else work_s
        late_s = MARGIN * (self.backlog_s + own_s * self._factor) - (deadline - time.monotonic())
        if late_s > 0:
            raise self.full("deadline", late_s)

    def full(self, reason: str, retry_after_s: float | None = None) -> QueueFull:
        """The error for a request that has no room now, counted as shed."""
        self.observer.shed(reason)
        wait_s = self.backlog_s if retry_after_s is None else retry_after_s
        return QueueFull(reason, max(1.0, math.ceil(wait_s)), self.requests, self.backlog_s)

    async def submit(self, item: WorkItem) -> Answer:
        """Waits for the item's answer; cancelling the awaiting task withdraws the item.

        Raises QueueFull, NotReady, DeadlineExceeded, Quarantined, WorkerLost, RunFailed, OptionError (a
        precision the model was not exported for), BundleNotFound, BundleInvalid, BackendUnavailable.
        """
        if await self._quarantine.holds(item):
            self.observer.shed("quarantined")
            raise Quarantined("two workers died while they ran this image; it is not tried again")
        entry = self._accept(item)
        try:
            return await entry.future
        finally:
            self._finish(entry, Cancelled("the caller has gone"), "cancelled")  # nothing, where it is done
            if not entry.future.cancelled():
                entry.future.exception()  # else asyncio reports it as unseen where the caller left just now

    def _accept(self, item: WorkItem) -> Pending:
        bundle = self.catalogue.by_digest(item.digest)
        if error := self._loader.objection(bundle, item.precision):
            raise error
        if item.admission is not None and not item.admission.open:
            raise ValueError("the item's admission was already released")
        if _expired(item):
            raise DeadlineExceeded(EXPIRED)
        usage = item.usage
        admission = item.admission
        if admission is None:
            model, background = Model(item.digest, item.precision), item.priority is Priority.BULK
            admission = self.admit(usage, ("tile", model, item.graph), background=background)
        if self.reason is not None:
            raise NotReady(self.reason)
        # All of a request's work is due when the request came, so that requests are finished one after the other;
        # else all would progress together, and be late together.
        due = admission.since + item.priority * self.config.ageing_s
        # Other shapes than those that were tried when the model was loaded might get other bytes in company.
        alone = not any(array.shape[2:] in bundle.manifest.tiles for array in item.arrays.values())
        loop, self._order = asyncio.get_running_loop(), self._order + 1
        entry = Pending(
            item,
            self._order,
            due,
            alone=alone,
            future=loop.create_future(),
            accepted=loop.time(),
            admission=admission,
            owned=item.admission is None,
        )
        self._entries.add(entry)
        self._queue.push(entry)
        if item.deadline is not None:
            left = item.deadline - time.monotonic()
            entry.timer = loop.call_later(left, self._finish, entry, DeadlineExceeded(EXPIRED), "expired")
        self._change.tell()
        return entry

    def _finish(
        self, entry: Pending, result: Answer | MedRestoreError, outcome: str, queue_s: float = 0.0, run_s: float = 0.0
    ) -> None:
        """The one place that completes an item; nothing, where it is complete."""
        if entry.done:
            return
        entry.done = True
        self._entries.discard(entry)
        self._queue.discard(entry)
        if entry.timer:
            entry.timer.cancel()
        if entry.owned:
            entry.admission.release()
        if not entry.future.done():
            if isinstance(result, Answer):
                entry.future.set_result(result)
            else:
                entry.future.set_exception(result)
        self.observer.finished(entry.item, outcome, queue_s, run_s)

    # -- workers ------------------------------------------------------------------------------

    async def _keep(self, worker: Supervisor) -> None:
        """Keeps a worker going until the service stops, or its device turns out not to be there."""
        await worker.supervise(self._loader.warm_up, self._turn, self.observer.worker_restarted)
        self._loader.give_up(worker.device)
        self._change.tell()

    def _notice(self) -> None:
        """Called when a worker's state changes."""
        self._change.tell()
        if self._workers and all(worker.state == "failed" for worker in self._workers):
            for entry in self._queue.drain():
                self._finish(entry, NotReady(self.reason or ""), "failed")

    def _new_worker(self, device: str | None = None, changed: Callable[[], None] = lambda: None) -> Supervisor:
        """One that is not started yet, for the first device unless another is named."""
        return Supervisor(device or self.config.devices[0], self._threads, self.config.patience, changed)

    async def _turn(self, worker: Supervisor) -> None:
        """Runs the next batch, waiting for one, and loads one model of those that it lacks; ends early where the
        process is to be replaced."""
        while not worker.replaced:
            batch = self._cut(worker)
            if batch:
                await self._run_batch(worker, batch)
            if self._loader.behind(worker.handle):
                await self._loader.load_next(worker.handle)
                self._change.tell()
            elif not batch:
                await self._change.wait()
            if batch:
                return

    def _cut(self, worker: Supervisor) -> list[Pending]:
        """The next batch, without what its callers no longer wait for."""
        if worker.dead:
            raise WorkerDeathError("ended while it was idle")
        while head := self._queue.head(lambda entry: not self._loader.leaves(worker.device, entry.model)):
            batch = self._queue.cut(head, worker.loaded.get(head.model, 1), self.config.batch_pixels)
            for entry in batch:
                if self._hopeless(entry):  # its timer may be late
                    self._finish(entry, DeadlineExceeded(EXPIRED), "expired")
            if batch := [entry for entry in batch if not entry.done]:
                for entry in batch:
                    entry.admission.begun = True
                return batch
        return []

    def _hopeless(self, entry: Pending) -> bool:
        """Whether the deadline has passed, or passes before a request can be done of which nothing has run yet.

        The only request may always try: else a bad estimate would never be put right.
        """
        admission, deadline = entry.admission, entry.item.deadline
        if deadline is None:
            return False
        needed_s = 0.0
        if not admission.begun and self.requests > 1:
            needed_s = admission.expected_s * min(1.0, self._factor)
        return deadline <= time.monotonic() + needed_s

    async def _run_batch(self, worker: Supervisor, batch: list[Pending]) -> None:
        """Completes each entry or puts it back; raises WorkerDeathError alone."""
        head, model = batch[0].item, batch[0].model
        try:
            await self._loader.load(worker.handle, model)
            for entry in batch:
                entry.attempts += 1
            started = asyncio.get_running_loop().time()
            outputs, run_s = await worker.run(model, head.graph, [entry.item.arrays for entry in batch])
            self._answer(worker, batch, outputs, run_s, started)
        except WorkerDeathError:
            if len(batch) == 1 and batch[0].attempts >= ATTEMPTS:
                await self._quarantine.add(batch[0].item)
            self._retry(batch, WorkerLost("the worker died twice while it ran this"), "lost")
            raise
        except RunFailed as exc:
            if len(batch) > 1:
                self._retry(batch, exc, "failed")
            else:
                self._finish(batch[0], exc, "failed")
        except Exception as exc:  # noqa: BLE001 (whatever it is, the batch must be completed)
            if isinstance(exc, BackendUnavailable) and self._loader.leaves(worker.device, model):
                self._put_back(batch)
                return
            error = exc if isinstance(exc, MedRestoreError) else RunFailed(f"{type(exc).__name__} around the run")
            for entry in batch:
                self._finish(entry, error, "failed")

    def _answer(
        self, worker: Supervisor, batch: list[Pending], outputs: list[dict[str, Array]], run_s: float, started: float
    ) -> None:
        room = worker.loaded.get(batch[0].model, 1)
        pixels = sum(entry.pixels for entry in batch)
        room = min(room, max(1, self.config.batch_pixels // batch[0].pixels))
        self.observer.batch_ran(worker.device, len(batch), pixels, len(batch) / room, run_s)
        for entry, own in zip(batch, outputs, strict=True):
            precision = entry.item.precision
            backend = self.config.backends[precision]
            queue_s = started - entry.accepted
            entry.admission.spent_s += run_s * entry.pixels / pixels
            if entry.owned:
                entry.admission.complete()
            answer = Answer(own, backend, worker.device, precision, queue_s, run_s, len(batch), entry.attempts)
            self._finish(entry, answer, "ok", queue_s, run_s)

    def _retry(self, batch: list[Pending], error: ServiceError, outcome: str) -> None:
        """Puts entries back, each to run alone; gives up those that had their attempts."""
        for entry in batch:
            if entry.attempts >= ATTEMPTS:
                self._finish(entry, error, outcome)
            entry.alone = True
        self._put_back(batch)

    def _put_back(self, batch: list[Pending]) -> None:
        for entry in batch:
            if not entry.done:
                self._queue.push(entry)
        self._change.tell()


def _expired(item: WorkItem) -> bool:
    return item.deadline is not None and item.deadline <= time.monotonic()
