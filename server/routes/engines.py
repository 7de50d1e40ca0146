"""Engines: who computes, and how busy it is. They belong to the installation, not to a project."""

from __future__ import annotations

import time

from fastapi import APIRouter

from trunkline.server.scope import ScopeOf
from trunkline.server.state import StateOf
from trunkline.server.wire import EngineObject, ListObject, engine_object, list_object

router = APIRouter(prefix="/v1/engines")


@router.get("")
def list_engines(state: StateOf, _: ScopeOf) -> ListObject[EngineObject]:
    """The engines that are alive, with their latest figures."""
    alive = state.engines.list(time.time(), state.settings.engine_alive_seconds)
    return list_object([engine_object(engine) for engine in alive], has_more=False)
