"""The jobs of a service: which kinds there are, and how the settings configure them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import JobsUnavailable
from app.jobs.engine import JobConfig, JobEngine
from app.jobs.folder import JobFolder
from app.jobs.restoration import KIND, RestorationHandler
from app.log import event
from app.service import Service

SWITCHED_OFF = "jobs are switched off here: set `jobs` to a folder"


@asynccontextmanager
async def working(service: Service) -> AsyncIterator[JobEngine | str]:
    """Works on jobs inside the `async with` block; gives the reason where there are none.

    A folder that cannot be used costs the service its jobs, and nothing else.
    """
    settings = service.settings
    if settings.jobs is None:
        yield SWITCHED_OFF
        return
    folder = JobFolder(settings.jobs, settings.job_disk_bytes, settings.job_free_bytes)
    config = JobConfig(settings.job_workers, settings.job_count, settings.job_keep_s)
    engine = JobEngine(folder, {KIND: RestorationHandler(service, folder)}, config, service.metrics)
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
