"""Somebody who receives webhooks, and a sender without the server around it."""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.server.live_server import HANG_SECONDS
from tests.support import wait_for
from trunkline.server.settings import ServerSettings
from trunkline.server.webhooks import delivery
from trunkline.server.webhooks.backoff import Backoff
from trunkline.server.webhooks.delivery import WebhookSender
from trunkline.server.webhooks.post import Poster
from trunkline.server.webhooks.signing import new_secret
from trunkline.store.database import Database
from trunkline.store.migrate import upgrade
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.webhooks import (
    EVENT_TYPES,
    Deliveries,
    DeliveryRecord,
    NewWebhookEndpoint,
    WebhookEndpointRecord,
    WebhookEndpoints,
    enqueue_events,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Received:
    """A request that has arrived."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """An HTTP server on this machine that keeps what it gets."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Received] = []
        # The status to answer with; may take its time.
        self.answer: Callable[[Received], int] = lambda _: 204
        self.headers: dict[str, str] = {}
        self.most_at_once: Counter[str] = Counter()  # of one event
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def _handler(receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # two kinds of self
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = receiver._take(Received(self.path, headers, body))
                with suppress(OSError):  # the sender has given up waiting
                    self.send_response(status)
                    for name, value in receiver.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _take(self, request: Received) -> int:
        with self._lock:
            self.requests.append(request)
            self._open[request.event_id] += 1
            now = self._open[request.event_id]
            self.most_at_once[request.event_id] = max(now, self.most_at_once[request.event_id])
        try:
            return self.answer(request)
        finally:
            with self._lock:
                self._open[request.event_id] -= 1

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(tls: ssl.SSLContext | None = None) -> Receiver:
        made.append(Receiver(tls))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., Receiver]) -> Receiver:
    return make_receiver()


class Hooks:
    """Endpoints and events of the default project, straight in the store; and senders."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self.database = Database.open(database_url)
        self.endpoints = WebhookEndpoints(self.database, DEFAULT_PROJECT_ID)
        self.deliveries = Deliveries(self.database)
        self._senders: dict[WebhookSender, Database] = {}

    def endpoint(self, url: str) -> WebhookEndpointRecord:
        new = NewWebhookEndpoint("test", url, EVENT_TYPES)
        return self.endpoints.create(new, new_secret(), int(time.time()))

    def event(self, batch_id: str = "batch_1", age_seconds: int = 0) -> None:
        """A batch has ended."""
        now = int(time.time()) - age_seconds
        with self.database.write() as connection:
            enqueue_events(connection, DEFAULT_PROJECT_ID, "batch.completed", batch_id, now)

    def sender(
        self,
        resolve: Callable[[str, int], Any] | None = None,
        tls: ssl.SSLContext | None = None,
        backoff: Backoff | None = None,
        claim_seconds: float | None = None,
        **settings: Any,
    ) -> WebhookSender:
        """A running sender with connections of its own, as another server has them."""
        values = {
            "webhook_allow_private_addresses": True,
            "webhook_timeout_seconds": HANG_SECONDS,
            **settings,
        }
        resolved = ServerSettings(**values)
        options = {"tls": tls} if resolve is None else {"resolve": resolve, "tls": tls}
        database = Database.open(self._url)
        sender = WebhookSender(
            resolved,
            Deliveries(database),
            Poster(resolved, **options),
            backoff or Backoff(first_seconds=0.05),
            claim_seconds,
        )
        self._senders[sender] = database
        sender.start()
        return sender

    def stop(self, sender: WebhookSender) -> None:
        sender.stop()
        self._senders.pop(sender).close()

    def states(self, endpoint: WebhookEndpointRecord) -> Sequence[DeliveryRecord]:
        return self.endpoints.deliveries(endpoint.id, 100).items

    def delivered(self, endpoint: WebhookEndpointRecord) -> Sequence[DeliveryRecord]:
        """The endpoint's deliveries, as soon as all have been delivered."""

        def all_delivered() -> Sequence[DeliveryRecord]:
            states = self.states(endpoint)
            return states if all(state.delivered_at is not None for state in states) else ()

        return wait_for(all_delivered)

    def close(self) -> None:
        for sender in tuple(self._senders):
            self.stop(sender)
        self.database.close()


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    """For what has nothing to do with the kind of database."""
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.05)
    url = f"sqlite:///{tmp_path / 'hooks.db'}"
    upgrade(url)
    with closing(Hooks(url)) as made:
        yield made


@pytest.fixture
def hooks_everywhere(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    """On each kind of database in turn."""
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.05)
    with closing(Hooks(database_url)) as made:
        yield made
