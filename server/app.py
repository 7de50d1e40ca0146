"""Wires the application together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import FastAPI

import trunkline
from trunkline.server.errors import install_error_handlers
from trunkline.server.lifecycle import Lifecycle
from trunkline.server.request_id import RequestIdMiddleware
from trunkline.server.routes import batches, files, health, models
from trunkline.server.settings import ServerSettings
from trunkline.server.state import State
from trunkline.store.batches import Batches
from trunkline.store.blobs import DiskBlobs
from trunkline.store.closing import Closing
from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.files import Files


def create_app(settings: ServerSettings, expected_models: tuple[str, ...] = ()) -> FastAPI:
    """The application, on a database that has all migrations.

    Args:
        settings: see `ServerSettings`.
        expected_models: names of models whose engine is about to start.
    """
    database = Database.open(settings.url)
    blobs = DiskBlobs(settings.blobs_dir)
    lifecycle = Lifecycle(
        settings,
        Closing(database),
        Files(database),
        blobs,
        models=lambda: tuple(state.models()),
    )
    state = State(
        settings=settings,
        database=database,
        blobs=blobs,
        files=Files(database),
        batches=Batches(database),
        engines=Engines(database),
        expected_models=expected_models,
        started_at=int(time.time()),
        wake_lifecycle=lifecycle.wake,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        try:
            yield
        finally:
            await run_sync(lifecycle.stop)
            database.close()

    app = FastAPI(
        title="Trunkline",
        version=trunkline.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.trunkline = state
    install_error_handlers(app)
    app.add_middleware(RequestIdMiddleware)
    for module in (health, files, batches, models):
        app.include_router(module.router)
    return app
