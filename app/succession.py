"""New processes in the place of those that work: how a model comes into service, and goes, under load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from app.catalogue import Catalogue
from app.change import Change
from app.errors import BackendUnavailable
from app.handle import Handle
from app.loader import Loader
from app.supervisor import Supervisor
from app.workers import Model, WorkerDeathError
from models.bundle import Bundle


class Succession:
    """Replaces the processes of an engine's workers; `spare` makes a worker that serves nobody, for a trial."""

    def __init__(
        self,
        catalogue: Catalogue,
        loader: Loader,
        workers: list[Supervisor],
        spare: Callable[[], Supervisor],
        change: Change,
    ) -> None:
        self._catalogue = catalogue
        self._loader = loader
        self._workers = workers
        self._spare = spare
        self._change = change
        self._kept: dict[Supervisor, frozenset[Model]] = {}  # models that were to go, and may be there still

    async def take_up(self, bundle: Bundle) -> None:
        """Makes a bundle ready to be offered, which is left to the caller: every worker gets a new process that
        holds it, self-tested and warmed up, beside all that it held; the old ones serve until then.

        A device that lacks what the bundle needs leaves it to the others. Raises BundleInvalid, or BackendUnavailable
        where all lack it, with the reason why it cannot serve; nothing has changed then.
        """
        prepared: list[tuple[Supervisor, Handle]] = []
        lacking: BackendUnavailable | None = None
        try:
            for worker in [w for w in self._workers if w.usable] or [self._spare()]:
                try:
                    prepared.append((worker, await worker.prepare(partial(self._loader.examine, bundle=bundle))))
                except BackendUnavailable as exc:  # another device may have it
                    lacking = exc
            if lacking and not prepared:
                raise lacking
            while prepared:
                await self._replace(*prepared[0])
                del prepared[0]
        except BaseException:  # the service may be stopping
            await asyncio.gather(*(handle.stop() for _, handle in prepared))
            raise
        self._catalogue.stage(bundle)
        self._change.tell()
        while not self._holds(bundle):  # those that could not be replaced load it in their place
            await self._change.wait()
        self._catalogue.by_digest(bundle.digest)  # raises where a worker refused it after all

    async def retire(self) -> None:
        """Gives each worker that holds what no request can need any more a new process without it."""
        for worker in self._workers:
            stale = self._loader.stale(worker)
            if worker.usable and stale - self._kept.get(worker, frozenset()):
                self._kept[worker] = stale  # one try
                with suppress(WorkerDeathError):
                    await self._replace(worker, await worker.prepare(_nothing))

    async def _replace(self, worker: Supervisor, handle: Handle) -> None:
        """Puts a new process in the place of the worker's, once its present batch is done; not where it could not
        serve all that the old one does, or the worker serves nobody."""
        try:
            fit = worker.usable and await self._loader.refill(handle, worker)
        except BaseException:
            await handle.stop()
            raise
        if not fit:
            await handle.stop()
            return
        await worker.succeed(handle)
        while worker.replaced and worker.usable:
            await self._change.wait()

    def _holds(self, bundle: Bundle) -> bool:
        """Whether every worker that takes work has loaded what it is to load of a bundle."""
        serving = [worker for worker in self._workers if worker.usable]
        return all(set(self._loader.wanted(bundle, worker.device)) <= worker.loaded.keys() for worker in serving)


async def _nothing(handle: Handle) -> None:
    """Loads nothing."""
