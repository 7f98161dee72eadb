"""The jobs of a service: which kinds there are, and how the settings configure them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from app.errors import JobsUnavailable
from app.jobs.crew import JobConfig
from app.jobs.engine import JobEngine
from app.jobs.folder import JobFolder
from app.jobs.restoration import KIND, RestorationHandler
from app.jobs.run import Handler
from app.log import event
from app.pacs.forward import KIND as DOOR_KIND
from app.pacs.job import KIND as PACS_KIND
from app.service import Service

SWITCHED_OFF = "jobs are switched off here: set `jobs` to a folder"


@asynccontextmanager
async def working(
    service: Service, more: Callable[[JobFolder], Mapping[str, Handler]] = lambda folder: {}
) -> AsyncIterator[JobEngine | str]:
    """Works on jobs inside the `async with` block; gives the reason where there are none.

    `more` gives the handlers of kinds that this module does not know, for the folder of jobs.

    A folder that cannot be used costs the service its jobs, and nothing else.
    """
    settings = service.settings
    if settings.jobs is None:
        yield SWITCHED_OFF
        return
    folder = JobFolder(settings.jobs, settings.job_disk_bytes, settings.job_free_bytes)
    workers = dict.fromkeys((PACS_KIND, DOOR_KIND), settings.pacs_jobs)
    config = JobConfig(settings.job_workers, workers, settings.job_count, settings.job_keep_s)
    handlers: dict[str, Handler] = {KIND: RestorationHandler(service, folder), **more(folder)}
    engine = JobEngine(folder, handlers, config, service.metrics)
    try:
        await engine.start()
    except JobsUnavailable as exc:
        event("no jobs", logging.ERROR, reason=str(exc))
        yield str(exc)
        return
    service.metrics.watch_jobs(engine)
    try:
        yield engine
    finally:
        await engine.stop()
