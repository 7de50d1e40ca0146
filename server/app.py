"""Wires the application together."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import FastAPI

import trunkline
from trunkline.server.access import Access
from trunkline.server.errors import install_error_handlers
from trunkline.server.lifecycle import Lifecycle
from trunkline.server.live_poller import LivePoller
from trunkline.server.metrics import Metrics
from trunkline.server.observation import HTTP_TELEMETRY, ObservationMiddleware
from trunkline.server.openapi import install_openapi
from trunkline.server.request_id import RequestIdMiddleware
from trunkline.server.routes import (
    batches,
    dashboard,
    engines,
    files,
    health,
    inference,
    models,
    uploads,
    webhooks,
)
from trunkline.server.routes import (
    metrics as metrics_page,
)
from trunkline.server.settings import ServerSettings
from trunkline.server.state import State
from trunkline.server.store_collector import StoreCollector
from trunkline.server.sweep import Sweep
from trunkline.server.together import Together
from trunkline.server.webhooks.delivery import WebhookSender
from trunkline.store.batches import look_up_batches
from trunkline.store.closing import Closing
from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.live import LiveRequests
from trunkline.store.open_blobs import open_blobs
from trunkline.store.outcomes import Outcomes
from trunkline.store.progress import Progress
from trunkline.store.projects import ApiKeys, Projects
from trunkline.store.totals import Totals
from trunkline.store.webhooks import Deliveries


def create_app(
    settings: ServerSettings,
    expected_models: tuple[str, ...] = (),
    stopping: threading.Event | None = None,
) -> FastAPI:
    """The application, on a database that has all migrations.

    Args:
        settings: see `ServerSettings`.
        expected_models: names of models whose engine is about to start.
        stopping: is set when the server is about to stop.
    """
    database = Database.open(settings.url)
    blobs = open_blobs(settings)
    engines_known = Engines(database)
    metrics = Metrics(
        StoreCollector(Totals(database), engines_known, settings.engine_alive_seconds)
    )
    stopping = stopping or threading.Event()
    live_requests = LiveRequests(database)
    live = LivePoller(
        live_requests,
        lambda now: engines_known.alive(now, settings.engine_alive_seconds),
        stopping,
    )
    sender = WebhookSender(settings, Deliveries(database))
    lifecycle = Lifecycle(
        settings,
        Closing(database),
        Sweep(database, blobs),
        models=lambda: tuple(state.models()),
        batch_ended=sender.wake,
        metrics=metrics,
    )
    state = State(
        settings=settings,
        database=database,
        blobs=blobs,
        access=Access(
            Projects(database), ApiKeys(database), allow_anonymous=settings.allow_anonymous
        ),
        batches=Together(lambda keys: look_up_batches(database, keys)),
        outcomes=Outcomes(database),
        progress=Progress(database),
        engines=engines_known,
        live_requests=live_requests,
        live=live,
        metrics=metrics,
        expected_models=expected_models,
        started_at=int(time.time()),
        wake_lifecycle=lifecycle.wake,
        stopping=stopping,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_sync(live_requests.withdraw_all_of, settings.server_name)
        lifecycle.start()
        sender.start()
        # What is there now stays: the collector, for which everybody waits, need not look at it.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            await live.stop()
            await run_sync(lifecycle.stop)
            await run_sync(sender.stop)
            database.close()

    app = FastAPI(
        title="Trunkline",
        version=trunkline.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=HTTP_TELEMETRY,
    )
    app.state.trunkline = state
    install_error_handlers(app)
    install_openapi(app)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(ObservationMiddleware, metrics=metrics)  # the outermost
    for module in (
        health,
        metrics_page,
        files,
        uploads,
        batches,
        inference,
        models,
        engines,
        webhooks,
        dashboard,
    ):
        app.include_router(module.router)
    return app
