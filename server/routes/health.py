"""Is the server alive, and can it work?"""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

import trunkline
from trunkline.server.state import State, StateOf
from trunkline.store.blobs import BlobsUnavailable
from trunkline.store.migrate import is_current

logger = logging.getLogger(__name__)

router = APIRouter()


@router.get("/")
def about() -> dict[str, Any]:
    return {"name": "trunkline", "version": trunkline.__version__, "api": "/v1", "docs": "/docs"}


@router.get("/healthz")
def healthz() -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(state: StateOf) -> JSONResponse:
    """Database and blobs are there, with all migrations. An engine may come and go."""
    try:
        is_ready = is_current(state.database)
        state.blobs.check()
        engines = _alive(state) if is_ready else []
    except SQLAlchemyError:
        logger.exception("the database cannot be reached")
        is_ready, engines = False, []
    except BlobsUnavailable as error:
        logger.error("the blobs cannot be reached: %s", error)
        is_ready, engines = False, []
    body = {
        "status": "ready" if is_ready else "not_ready",
        "engine_alive": bool(engines),
        "engines": engines,
    }
    return JSONResponse(body, 200 if is_ready else 503)


def _alive(state: State) -> list[dict[str, Any]]:
    alive = state.engines.list(time.time(), state.settings.engine_alive_seconds)
    return [{"name": e.name, "model": e.model, "device": e.device} for e in alive]
