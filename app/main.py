"""The service as an ASGI application, and the server that runs it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial

import uvicorn
from fastapi import FastAPI

from app import log, memory, openapi, problem
from app.access import Access, Guard, announce
from app.admission import QueueLimits
from app.audit import Audit
from app.batching import Engine, EngineConfig
from app.catalogue import Catalogue, task_name
from app.head import HeadProtocol
from app.jobs.start import working
from app.middleware import Monitor
from app.monitoring import Metrics
from app.pacs.desk import attending, connected, pacs_handlers
from app.pipeline import EXACT, FAST
from app.routes import analyze, health, jobs, models, pacs, restore, v2
from app.server import Server
from app.service import Service
from app.settings import Settings
from app.tracing import Tracer
from app.watch import Watch, look

API_VERSION = "1"  # of the interface, as in /v1; the product has its own
DESCRIPTION = """Denoising and super-resolution of medical images. For research; not a medical device.

Every path also answers under `/v1`. Options that are not listed are refused, never ignored. Errors
are `application/problem+json`. Beside it, `/v2` speaks the Open Inference Protocol (KServe, Triton)."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; its lifespan starts and stops the worker processes. Reads no file but the settings'."""
    settings = settings or Settings()
    metrics = Metrics()
    tracer = Tracer() if settings.tracing else None
    audit = Audit(settings.audit, metrics.audit_lost.inc)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = ThreadPoolExecutor(settings.codec_threads, thread_name_prefix="codec")
        asyncio.get_running_loop().set_default_executor(pool)
        service = app.state.service = await start_service(settings, metrics)
        audit.write("service started", access=settings.access)
        try:
            async with (
                following(service.watch, settings.repository_poll),
                connected(settings.pacs, metrics.pacs_called) as connections,
                working(service, partial(pacs_handlers, service, connections)) as app.state.jobs,
                attending(service, connections, app.state.jobs) as app.state.pacs,
            ):
                yield
        finally:
            await service.engine.stop()
            audit.write("service stopped")
            audit.close()
            if tracer:
                await asyncio.to_thread(tracer.shutdown)

    app = FastAPI(
        title="MedRestore",
        version=API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        # The web framework's own traces may quote a request: off, whatever the environment says. `app.tracing` is ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.draining = False
    for routes in (restore, analyze, jobs, pacs, models, health):
        app.include_router(routes.router)
        app.include_router(routes.router, prefix="/v1", include_in_schema=False)
    app.include_router(v2.router)
    problem.install(app)
    openapi.install(app)
    app.add_middleware(Guard, access=Access(settings, audit))
    app.add_middleware(Monitor, metrics=metrics, audit=audit, tracer=tracer)
    return app


async def start_service(settings: Settings, metrics: Metrics) -> Service:
    """Reads the bundles and starts the workers; they become ready in their own time."""
    seen = await asyncio.to_thread(look, settings.repository) if settings.repository.is_dir() else {}
    catalogue = await asyncio.to_thread(Catalogue, settings.repository, default_models(settings))
    engine = Engine(catalogue, engine_config(settings), metrics)
    metrics.watch(engine, catalogue)
    await engine.start()
    for reference, reason in catalogue.broken.items():
        log.event("model refused", logging.ERROR, model=reference, reason=reason)
    return Service(settings, catalogue, engine, metrics, Watch(engine, seen))


@asynccontextmanager
async def following(watch: Watch, every_s: float) -> AsyncIterator[None]:
    """Polls the repository inside the `async with` block; 0 does not."""
    task = asyncio.create_task(watch.run(every_s), name="repository") if every_s else None
    try:
        yield
    finally:
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def default_models(settings: Settings) -> dict[str, str]:
    """Task name -> the reference that the settings give."""
    named = {
        task_name("denoise", 1): settings.denoise_model,
        task_name("superresolve", 2): settings.superresolve_x2_model,
        task_name("superresolve", 4): settings.superresolve_x4_model,
    }
    return {task: reference for task, reference in named.items() if reference is not None}


def engine_config(settings: Settings) -> EngineConfig:
    """The engine's part of the settings."""
    return EngineConfig(
        devices=tuple(settings.devices),
        backends={EXACT: settings.backend, FAST: settings.fast_backend},
        preload=(EXACT, FAST) if settings.fast_for_8_bit else (EXACT,),
        threads=settings.threads,
        batch_pixels=settings.batch_pixels,
        ageing_s=settings.ageing_s,
        limits=QueueLimits(settings.queue_items, settings.queue_pixels, settings.queue_bytes),
        batch_items={EXACT: settings.batch_items_exact, FAST: settings.batch_items_fast},
    )


def serve(settings: Settings) -> None:
    """Runs the server until it is told to stop, and drains it then: see `app.server`. Raises OptionError."""
    memory.return_freed()
    log.configure(settings.log_level)
    announce(settings)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HeadProtocol,
        log_config=None,
        access_log=False,  # ours has the route, never the query or the caller
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_s),
    )
    server = Server(config, app, settings.drain_delay_s)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(1)
