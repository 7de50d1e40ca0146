"""An engine for live requests, which does as it is told; and a client that does not wait."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support import wait_for
from trunkline.store.blobs import DiskBlobs
from trunkline.store.database import Database
from trunkline.store.live import LiveEvent, LiveRequest, LiveWork
from trunkline.store.records import EngineRecord
from trunkline.store.schema import live_events, live_requests
from trunkline.store.work import Work

HEARTBEAT_SECONDS = 0.2
# Longer than any server takes an engine for alive without a sign of life.
SILENT_SECONDS = 3600.0


class LiveEngine:
    """Answers live requests in a thread.

    Each is answered by `on_request`, which may be replaced; what it does not answer stays open.
    """

    def __init__(self, database: Database, folder: Path, model: str | None = None) -> None:
        # Nobody else's, so that it claims only requests of its own test.
        self.model = model or "model-" + "".join(random.choices(ascii_lowercase, k=16))
        self.name = "engine-" + "".join(random.choices(ascii_lowercase, k=16))
        self.database = database
        self.work = Work(database, DiskBlobs(folder))
        self.live = LiveWork(database)
        self.seen: list[LiveRequest] = []
        self.on_request: Callable[[LiveRequest], None] = self.echo
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> LiveEngine:
        now = time.time()
        self.work.register(
            EngineRecord(self.name, self.model, "cpu", "float32", int(now), now, 2048, {})
        )
        self.live = LiveWork(self.database)
        self._ending.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def die(self) -> None:
        """End without a word, as by a crash."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def be_missed(self) -> None:
        """Be silent for so long, after its death, that it is noticed."""
        assert self._thread is None
        self.work.heartbeat(self.name, {}, [], time.time() - SILENT_SECONDS, 60)

    def stop(self) -> None:
        """End in order."""
        self.die()
        self.work.unregister(self.name, time.time())

    def echo(self, request: LiveRequest) -> None:
        """Answer with what was asked."""
        answer = {"endpoint": request.endpoint, "asked": request.body}
        self.live.answer(request.id, 200, json.dumps(answer))

    def ignore(self, request: LiveRequest) -> None:
        """Never answer."""

    def refuse(self, request: LiveRequest, status: int = 400) -> None:
        self.live.answer(request.id, status, json.dumps(error_body()))

    def event(
        self, request: LiveRequest, number: int, data: Any, event: str | None = None
    ) -> LiveEvent:
        return LiveEvent(request.id, number, event, json.dumps(data))

    def send(self, request: LiveRequest, number: int, data: Any, event: str | None = None) -> None:
        self.live.append([self.event(request, number, data, event)])

    def num_rows(self) -> int:
        """Requests for this engine's model that are in the store, and all events of such."""
        mine = live_requests.c.model == self.model
        with self.database.read() as connection:
            requests = sa.select(sa.func.count()).select_from(live_requests).where(mine)
            events = (
                sa.select(sa.func.count()).select_from(live_events.join(live_requests)).where(mine)
            )
            return sum(connection.execute(query).scalar() or 0 for query in (requests, events))

    def _run(self) -> None:
        next_heartbeat = 0.0
        while not self._ending.is_set():
            if time.monotonic() >= next_heartbeat:
                self.work.heartbeat(self.name, {}, [], time.time(), 60)
                next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
            for request in self.live.claim(self.name, [self.model], time.time(), 8):
                self.seen.append(request)
                self.on_request(request)
            self._ending.wait(0.01)


def error_body() -> dict[str, Any]:
    error = {"message": "too warm", "type": "invalid_request_error", "param": "temperature"}
    return {"error": {**error, "code": "invalid_value"}}


def _ask_and_leave(
    server: Any, path: str, body: dict[str, Any], has_arrived: Callable[[], object]
) -> None:
    connection = HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", path, json.dumps(body))
    wait_for(has_arrived)
    connection.close()


@pytest.fixture
def ask_and_leave() -> Any:
    """Sends a request to a server, and hangs up when it has arrived where it is answered."""
    return _ask_and_leave


@pytest.fixture
def make_live_engine(tmp_path: Path) -> Iterator[Callable[..., LiveEngine]]:
    """Makes engines on a database, each started."""
    made: list[LiveEngine] = []

    def make(database: Database, model: str | None = None) -> LiveEngine:
        made.append(LiveEngine(database, tmp_path / "blobs-of-engines", model))
        return made[-1].start()

    yield make
    for engine in made:
        engine.die()


@pytest.fixture
def live_engine(server: Any, make_live_engine: Callable[..., LiveEngine]) -> LiveEngine:
    """An engine on the server that all tests share."""
    return make_live_engine(server.database)
