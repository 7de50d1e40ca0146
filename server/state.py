"""What the endpoints need, made once per application."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from trunkline.server.access import Access
from trunkline.server.live_poller import LivePoller
from trunkline.server.metrics import Metrics
from trunkline.server.settings import ServerSettings
from trunkline.server.together import Together
from trunkline.store.blobs import BlobStore
from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.live import LiveRequests
from trunkline.store.outcomes import Outcomes
from trunkline.store.progress import Progress
from trunkline.store.records import BatchRecord


@dataclass(frozen=True)
class State:
    """The store, the settings, and a way to tell the background work that there is some."""

    settings: ServerSettings
    database: Database
    blobs: BlobStore
    access: Access
    batches: Together[tuple[str, str], BatchRecord]  # by project and id; see `look_up_batches`
    outcomes: Outcomes
    progress: Progress
    engines: Engines
    live_requests: LiveRequests
    live: LivePoller
    metrics: Metrics
    # Names that are served although no engine has registered yet.
    expected_models: tuple[str, ...]
    started_at: int  # unix seconds
    wake_lifecycle: Callable[[], None]
    stopping: threading.Event

    def now(self) -> int:
        """Unix seconds."""
        return int(time.time())

    def models(self) -> dict[str, int]:
        """Each model that is served, and since when (unix seconds)."""
        expected = dict.fromkeys(self.expected_models, self.started_at)
        return dict(sorted((expected | dict(self.engines.models())).items()))


async def _state(request: Request) -> State:  # async: needs no thread
    state: State = request.app.state.trunkline
    return state


StateOf = Annotated[State, Depends(_state)]
