"""A live server in a process of its own, on each kind of store, and an engine that answers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from string import ascii_lowercase
from typing import Any, TypeVar

import httpx
import openai
import psutil
import pytest
from openai.types import Batch, FileObject

from tests.support import free_port, wait_for
from trunkline.store.blobs import BlobStore, DiskBlobs
from trunkline.store.database import Database
from trunkline.store.location import ObjectPlace
from trunkline.store.migrate import upgrade
from trunkline.store.object_blobs import ObjectBlobs
from trunkline.store.records import Claim, EngineRecord, Outcome, RequestRow
from trunkline.store.work import Work

T = TypeVar("T")

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
SERVED_NAME = "tiny"  # a model that the server expects; no engine serves it


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


class LiveServer:
    """`trunkline server` on a data folder and a database."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.data_dir = folder / "data"
        self.database_url = database_url
        self.database = Database.open(database_url)
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.base_url, timeout=60)
        self.client = openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="unused", max_retries=0)
        self._settings = {
            "served_model_name": SERVED_NAME,
            "server_name": "server-under-test",
            "server_poll_seconds": 0.05,
            **settings,
        }
        self._environment = environment or {}
        self._log_path = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def start(self) -> None:
        environment = {f"TRUNKLINE_{k.upper()}": str(v) for k, v in self._settings.items()}
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trunkline", "server", "--port", str(self.port)),
                    *("--data-dir", str(self.data_dir), "--database-url", self.database_url),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONSAFEPATH": "1", **self._environment, **environment},
            )
        wait_for(self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL to the server's own process alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask the server to stop; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        """End everything."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.http.close()
        self.client.close()
        self.database.close()

    def upload(self, content: bytes, **options: Any) -> FileObject:
        return self.client.files.create(file=("in.jsonl", content), purpose="batch", **options)

    def create(self, content: bytes, endpoint: Any = CHAT, **options: Any) -> Batch:
        """Create a batch with this input file."""
        return self.client.batches.create(
            input_file_id=self.upload(content).id,
            endpoint=endpoint,
            completion_window="24h",
            **options,
        )

    def wait(self, batch_id: str, *statuses: str) -> Batch:
        """The batch as soon as it has one of these statuses."""

        def reached() -> Batch | None:
            batch = self.client.batches.retrieve(batch_id)
            if batch.status in statuses:
                return batch
            assert batch.status not in ENDED, batch
            return None

        return wait_for(reached)

    def wait_for_end(self, batch_id: str) -> Batch:
        return self.wait(batch_id, *ENDED)

    def blob_store(self) -> BlobStore:
        """The same bytes as the server's, for an engine."""
        return DiskBlobs(self.data_dir / "blobs")

    def blobs(self) -> set[Path]:
        """Where uploads and results are kept; the last part of each path is the blob's key."""
        return {path for path in (self.data_dir / "blobs").rglob("*") if path.is_file()}

    def delete_blob(self, path: Path) -> None:
        """Take away one of `blobs`, as an administrator may who does not know better."""
        self.blob_store().delete(path.name)

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file; none if there is no file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]

    def errors(self, content: bytes) -> list[tuple[str | None, int | None, str | None]]:
        """Code, line and parameter of all that is wrong with an input file."""
        batch = self.wait_for_end(self.create(content).id)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        return [(error.code, error.line, error.param) for error in batch.errors.data]


class Alternating(httpx.HTTPTransport):
    """Sends each request to the next of several servers, whatever its URL says."""

    def __init__(self, base_urls: Sequence[str]) -> None:
        super().__init__()
        self._next = cycle(map(httpx.URL, base_urls))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        place = next(self._next)
        request.url = request.url.copy_with(host=place.host, port=place.port)
        return super().handle_request(request)


class TwoServers(LiveServer):
    """Two servers on one PostgreSQL and one bucket. What one is asked, the other must know.

    The clients send every request to the other server; who goes by the base URL meets the first.
    """

    def __init__(self, folder: Path, database_url: str, s3: Any) -> None:
        self._s3, self._bucket = s3, s3.create_bucket()
        place = {"TRUNKLINE_BLOB_URL": f"s3://{self._bucket}/a/prefix", **s3.environment}
        super().__init__(folder, database_url, place, server_name="first-server")
        (folder / "second").mkdir()
        self._second = LiveServer(
            folder / "second", database_url, place, server_name="second-server"
        )
        self.http.close()
        self.client.close()
        urls = (self.base_url, self._second.base_url)
        self.http = httpx.Client(base_url=self.base_url, timeout=60, transport=Alternating(urls))
        self.client = openai.OpenAI(
            base_url=f"{self.base_url}/v1",
            api_key="unused",
            max_retries=0,
            # The client takes those of httpx too, whatever its annotation says.
            http_client=httpx.Client(transport=Alternating(urls), timeout=60),  # type: ignore[arg-type]
        )

    @property
    def log(self) -> str:
        return super().log + self._second.log

    def start(self) -> None:
        super().start()
        self._second.start()

    def close(self) -> None:
        self._second.close()
        super().close()

    def blob_store(self) -> BlobStore:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._s3.environment.items():
                patch.setenv(name, value)
            return ObjectBlobs(ObjectPlace(self._bucket, "a/prefix"))

    def blobs(self) -> set[Path]:
        return {Path(key) for key in self._s3.keys(self._bucket)}


@pytest.fixture(scope="session", params=["sqlite", "postgres", "postgres+s3"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """One installation for all tests that look only at what they have made themselves."""
    folder = tmp_path_factory.mktemp("server")
    if request.param == "sqlite":
        url = f"sqlite:///{folder / 'test.db'}"
    else:
        url = request.getfixturevalue("postgres").create_database()
    upgrade(url)
    if request.param == "postgres+s3":
        running: LiveServer = TwoServers(folder, url, request.getfixturevalue("s3_server"))
    else:
        running = LiveServer(folder, url)
    running.start()
    yield running
    running.close()


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
