"""Routing as a part of the service: rules and doors by its settings, feeds of its PACS, jobs of its engine."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from app.catalogue import Catalogue
from app.errors import BackendUnavailable, JobsUnavailable, RuleError
from app.jobs.engine import JobEngine
from app.log import event, places
from app.pacs.call import open_client
from app.pacs.candidate import Candidate
from app.pacs.cursor import Cursors
from app.pacs.desk import Pacs
from app.pacs.door import Door
from app.pacs.feed import ChangeFeed, Feed, QueryFeed
from app.pacs.job import Connection
from app.pacs.listener import Listener
from app.pacs.orthanc import Orthanc
from app.pacs.report import FeedStatus
from app.pacs.request import request_of
from app.pacs.router import Router
from app.pacs.rule import Rules, Work
from app.pacs.rulebook import Rulebook
from app.service import Service
from models.errors import MedRestoreError

NO_RULES = "there are no rules here: set `pacs_rules` to a file"
DATABASE = "routing.sqlite3"


@dataclass(frozen=True)
class Routing:
    """What the service does without a call; `reason` says why it does nothing, though it may be meant to."""

    router: Router | None = None
    door: Door | None = None
    listener: Listener | None = None
    reason: str = NO_RULES
    meant: bool = False  # there is a setting for rules
    silence: str | None = None  # why C-STORE is not listened for, though there is a setting for it

    def feeds(self) -> dict[str, FeedStatus]:
        """How the feeds of the PACS are, by PACS."""
        return {} if self.router is None else {pacs: self.router.status(pacs) for pacs in self.router.feeds}

    @property
    def problem(self) -> str | None:
        """Why the rules file is not in force as it is now."""
        if self.router is None:
            return f"nothing is routed: {self.reason}" if self.meant else None
        self.router.rulebook.rules()
        return self.router.rulebook.problem

    def the_router(self) -> Router:
        """Raises JobsUnavailable."""
        if self.router is None:
            raise JobsUnavailable(self.reason)
        return self.router

    def the_door(self) -> Door:
        """Raises JobsUnavailable."""
        if self.door is None:
            raise JobsUnavailable(self.reason)
        return self.door


@asynccontextmanager
async def routing(
    service: Service, connections: Mapping[str, Connection], jobs: JobEngine | str, desk: Pacs
) -> AsyncIterator[Routing]:
    """Routes inside the `async with` block."""
    settings = service.settings
    if settings.pacs_rules is None or isinstance(jobs, str) or not connections:
        reason = jobs if isinstance(jobs, str) else NO_RULES if connections else "no PACS is configured here"
        meant, silence = settings.pacs_rules is not None, None if settings.dimse_port is None else reason
        if meant or silence:
            event("nothing is routed", logging.ERROR, reason=reason)
        yield Routing(reason=reason, meant=meant, silence=silence)
        return
    listening = settings.dimse_port is not None
    checking = partial(check_rules, list(connections), service.catalogue, listening)
    rulebook = Rulebook(settings.pacs_rules, checking)
    rulebook.rules()
    try:
        cursors = await asyncio.to_thread(Cursors, jobs.folder.root / DATABASE)
    except (sqlite3.Error, OSError, JobsUnavailable) as error:
        event("nothing is routed", logging.ERROR, **places(error))
        reason = f"{DATABASE} in the folder of jobs cannot be used"
        yield Routing(reason=reason, meant=True, silence=None if settings.dimse_port is None else reason)
        return
    async with AsyncExitStack() as stack:
        stack.callback(cursors.close)
        feeds = {name: await _feed(service, name, c, cursors, stack) for name, c in connections.items()}
        submitting, known = partial(submit, desk), partial(_made_here, jobs)
        router = Router(feeds, rulebook, submitting, known, settings.pacs_poll_s, service.metrics)
        door = Door(jobs, rulebook, service.catalogue, settings)
        router.start()
        stack.push_async_callback(router.stop)
        sweeping = asyncio.create_task(door.sweep(), name="door")
        stack.push_async_callback(_cancelled, sweeping)
        listener = await _listener(service, door, stack)
        silence = listener if isinstance(listener, str) else None
        yield Routing(router, door, None if isinstance(listener, str) else listener, silence=silence)


async def _feed(service: Service, name: str, connection: Connection, cursors: Cursors, stack: AsyncExitStack) -> Feed:
    """Orthanc's feed of changes where the PACS has one, else questions."""
    settings, peer = service.settings, connection.peer
    if peer.orthanc is None:
        return QueryFeed(name, connection.web, cursors, settings.pacs_stable_s, settings.pacs_days)
    client = await stack.enter_async_context(await asyncio.to_thread(open_client, peer))
    return ChangeFeed(name, Orthanc(peer, client, service.metrics.pacs_called), cursors)


async def _listener(service: Service, door: Door, stack: AsyncExitStack) -> Listener | str | None:
    """The C-STORE SCP of the settings, or why it cannot listen, which costs the service nothing else."""
    if service.settings.dimse_port is None:
        return None
    listener = Listener(door, service.settings)
    try:
        await asyncio.to_thread(listener.start)
    except (BackendUnavailable, OSError) as error:
        reason = str(error) if isinstance(error, MedRestoreError) else f"the port: {error.strerror}"
        event("not listening for C-STORE", logging.ERROR, reason=reason)
        return reason
    stack.push_async_callback(listener.stop)
    return listener


async def submit(desk: Pacs, pacs: str, candidate: Candidate, work: Work) -> tuple[str, bool]:
    """Hands in the job of one series; its id, and whether it is new. Raises what `Pacs.submit` does."""
    job, created = await desk.submit(request_of(pacs, candidate, work))
    return job.job.id, created


async def _made_here(jobs: JobEngine, pacs: str, series: str) -> bool:
    return await jobs.made(series)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def check_rules(pacs: list[str], catalogue: Catalogue, listening: bool, rules: Rules) -> None:
    """Raises RuleError where rules name a PACS or a model that is not there, or, where C-STORE is listened for, where
    they may drop what was accepted."""
    door = rules.door
    if listening and door is not None and not door.takes_small_series:
        raise RuleError(
            "rules: door: min_instances with C-STORE, which answers each instance before it is known how many come: "
            "leave it out, or say what becomes of smaller series by [door.default] or originals = true"
        )
    works: list[tuple[str, Work]] = [(f"route {route.name!r}", route) for route in rules.route]
    named = [(f"route {route.name!r}", route.pacs) for route in rules.route]
    if door is not None:
        works += [(f"door.route {route.name!r}", route) for route in door.route]
        works += [("door.default", door.default)] if door.default else []
        named += [("door", door.pacs)]
    for where, name in named:
        if name is not None and name not in pacs:
            raise RuleError(f"rules: {where}: no PACS {name!r} in the settings; there are: {', '.join(sorted(pacs))}")
    for where, work in works:
        try:
            catalogue.lookup(work.model, work.operation, work.scale or 1)
        except MedRestoreError as error:
            raise RuleError(f"rules: {where}: {error}") from error
