"""A live server in a process of its own, on each kind of store, and an engine that answers."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import psutil
import pytest

from tests.server.live_server import CHAT, HANG_SECONDS, LiveServer, TwoServers
from tests.server.stores import DATABASES, STORES, in_the_full_run
from tests.support import wait_for
from trunkline.store.blobs import BlobStore
from trunkline.store.database import Database
from trunkline.store.records import Claim, EngineRecord, Outcome, RequestRow
from trunkline.store.work import Work


class FakeEngine:
    """Works on the store as an engine does, without a model; the answers name their line."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self.work = Work(database, blobs)
        # Nobody else's, so that it claims only batches of its own test.
        self.model = "model-" + "".join(random.choices(ascii_lowercase, k=16))
        now = time.time()
        self.work.register(
            EngineRecord(
                f"engine-of-{self.model}", self.model, "cpu", "float32", int(now), now, 2048, {}
            )
        )

    def line(self, custom_id: str, **body: Any) -> dict[str, Any]:
        """A valid line, with `body` added to its body."""
        messages = [{"role": "user", "content": "grüß Gott"}]
        return {
            "custom_id": custom_id,
            "method": "POST",
            "url": CHAT,
            "body": {"model": self.model, "messages": messages, **body},
        }

    def lines(self, count: int) -> list[dict[str, Any]]:
        """The lines request-0, request-1, …"""
        return [self.line(f"request-{i}") for i in range(count)]

    def claim(self) -> Claim:
        """Claim the next batch, as soon as there is one."""
        claimed = wait_for(lambda: self.work.claim(self.model, [self.model], time.time(), 60))
        assert claimed is not None
        return claimed

    def answer(self, claim: Claim, limit: int | None = None, failing: Collection[str] = ()) -> None:
        """Answer the open lines, the first `limit` of them; those `failing` with an error."""
        rows = list(self.work.unfinished(claim))[:limit]
        outcomes = [_outcome(row, row.custom_id in failing) for row in rows]
        self.work.commit(claim, outcomes, int(time.time()))

    def complete(self, claim: Claim, failing: Collection[str] = ()) -> None:
        """Answer all open lines and let the batch go."""
        self.answer(claim, failing=failing)
        assert self.work.finish(claim, int(time.time()))


def _outcome(row: RequestRow, is_failure: bool) -> Outcome:
    if is_failure:
        error = {"message": "too warm", "type": "invalid_request_error", "param": "temperature"}
        return Outcome(row.line, 400, json.dumps({"error": {**error, "code": None}}))
    text = row.body["messages"][0]["content"] if "messages" in row.body else row.body["prompt"]
    message = {"role": "assistant", "content": f"answer to {row.custom_id}: {text}"}
    answer = {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    return Outcome(
        row.line,
        200,
        json.dumps(answer),
        num_prompt_tokens=10,
        num_cached_tokens=4,
        num_output_tokens=3,
        num_reasoning_tokens=1,
    )


# Of the servers that tests share.
SHARED = {"webhook_allow_private_addresses": True, "webhook_timeout_seconds": HANG_SECONDS}


def _running(server: LiveServer) -> Iterator[LiveServer]:
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("sqlite-server")
    yield from _running(LiveServer(folder, f"sqlite:///{folder / 'test.db'}", **SHARED))


@pytest.fixture(scope="session")
def postgres_server(
    tmp_path_factory: pytest.TempPathFactory, postgres: Any
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("postgres-server")
    yield from _running(LiveServer(folder, postgres.create_database(), **SHARED))


@pytest.fixture(scope="session")
def s3_servers(
    tmp_path_factory: pytest.TempPathFactory, postgres: Any, s3_server: Any
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("s3-servers")
    yield from _running(TwoServers(folder, postgres.create_database(), s3_server, **SHARED))


@pytest.fixture(params=in_the_full_run(STORES))
def server(request: pytest.FixtureRequest) -> LiveServer:
    """An installation for tests that look only at what they have made themselves.

    Each kind is started when it is first asked for, and runs to the end.
    """
    fixtures = {
        "sqlite": "sqlite_server",
        "postgres": "postgres_server",
        "postgres+s3": "s3_servers",
    }
    running: LiveServer = request.getfixturevalue(fixtures[request.param])
    return running


@pytest.fixture(params=in_the_full_run(DATABASES))
def empty_database_url(empty_database_url: str) -> str:
    """As everywhere, but PostgreSQL is left out of the quick run."""
    return empty_database_url


@pytest.fixture(scope="session")
def limited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose limits are so low that tests can reach them."""
    folder = tmp_path_factory.mktemp("limited-server")
    limits = {
        "max_file_bytes": 2000,
        "max_batch_file_bytes": 1000,
        "max_upload_bytes": 10,
        "max_batch_requests": 3,
    }
    yield from _running(LiveServer(folder, f"sqlite:///{folder / 'test.db'}", **limits))


@pytest.fixture
def make_engine() -> Callable[[LiveServer], FakeEngine]:
    """Makes engines beside a server, each for a model of its own."""

    def make(server: LiveServer) -> FakeEngine:
        return FakeEngine(server.database, server.blob_store())

    return make


@pytest.fixture
def engine(server: LiveServer, make_engine: Callable[[LiveServer], FakeEngine]) -> FakeEngine:
    return make_engine(server)


@pytest.fixture
def make_server(database_url: str, tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers of the test's own, all on one data folder and database."""
    made: list[LiveServer] = []

    def make(**settings: Any) -> LiveServer:
        made.append(LiveServer(tmp_path, database_url, **settings))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


@contextmanager
def _watching(process: psutil.Process) -> Iterator[Callable[[], int]]:
    """Gives the largest resident size of `process` so far, in bytes."""
    largest = process.memory_info().rss
    is_over = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not is_over.wait(0.02):
            largest = max(largest, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: largest
    finally:
        is_over.set()
        thread.join()


@pytest.fixture
def watching() -> Any:
    """Watches a process's memory inside a `with`, which gives a function for the largest so far."""
    return _watching
