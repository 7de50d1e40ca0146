"""Many who watch a batch and some who upload large files do not keep each other waiting.

How long a status request waits is counted in what the server does meanwhile for those who upload.
The server handles them in small pieces, between which it answers; how fast the machine is, and what
else runs on it, changes the seconds and not the pieces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.models import small_model
from tests.support import free_port, wait_for
from trunkline.store.blobs import DiskBlobs
from trunkline.store.database import Database
from trunkline.store.records import Outcome
from trunkline.store.work import Work

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
GENERATOR = Path(__file__).parents[2] / "benchmarks" / "server_load.py"
MODEL = "tiny"
NUM_LINES = 20_000
RUN_SECONDS = 500
# Ten uploads in flight hold some pieces each; one file kept in memory would be more than this.
MAX_GROWTH_BYTES = 64 * MIB
# Pieces are of 256 KiB. Each of ten uploads may be a few ahead, and so may the network be.
MAX_USUAL_WAIT_BYTES = 16 * MIB
# Whoever gets no processor for a moment sees more go by, but never most of what is under way.
MAX_WAIT_SHARE = 0.5
COMMITS_PER_SECOND, OUTCOMES_PER_COMMIT = 10, 20


@dataclass(frozen=True)
class Load:
    """How many come, and how much they do."""

    pollers: int
    polls: int  # in all, at least
    uploaders: int
    uploads: int  # in all, at least
    upload_bytes: int


SMALL = Load(pollers=50, polls=250, uploaders=5, uploads=10, upload_bytes=32 * MIB)
LARGE = Load(pollers=200, polls=2000, uploaders=10, uploads=20, upload_bytes=100 * MIB)
LOADS = [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large", marks=pytest.mark.slow)]


class Server:
    """`trunkline server` on a folder of its own."""

    def __init__(self, folder: Path, database_url: str) -> None:
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self._log_path = folder / "server.log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trunkline", "server", "--port", str(port)),
                    *("--data-dir", str(folder / "data"), "--served-model-name", MODEL),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONSAFEPATH": "1",
                    "TRUNKLINE_DATABASE_URL": database_url,
                },
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return httpx.get(f"{self.base_url}/readyz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def create_batch(self, content: bytes) -> str:
        """A batch that is valid and runs."""
        with httpx.Client(base_url=f"{self.base_url}/v1", timeout=60) as http:
            upload = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": "batch"}}
            file = http.post("/files", **upload).raise_for_status().json()  # type: ignore[arg-type]
            body = {
                "input_file_id": file["id"],
                "endpoint": "/v1/completions",
                "completion_window": "24h",
            }
            batch_id: str = http.post("/batches", json=body).raise_for_status().json()["id"]
            deadline = time.monotonic() + 60
            while http.get(f"/batches/{batch_id}").json()["status"] != "in_progress":
                assert time.monotonic() < deadline, self.log
                time.sleep(0.1)
        return batch_id


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path, database_url)
    try:
        started.wait()
        yield started
    finally:
        started.process.kill()
        started.process.wait()


class Background(threading.Thread):
    """An engine that commits at a steady rate, and an eye on the server's memory, until told."""

    def __init__(self, server: Server, database: Database, folder: Path) -> None:
        super().__init__()
        self.resident_bytes: list[int] = []
        self.failure: BaseException | None = None
        self._server = psutil.Process(server.process.pid)
        self._work = Work(database, DiskBlobs(folder / "unused"))
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error

    def _run(self) -> None:
        claim = self._work.claim("an engine", [MODEL], time.time(), 600)
        assert claim is not None
        body = json.dumps({"object": "text_completion", "choices": [{"text": "x" * 500}]})
        line = 1
        while not self._stopping.wait(1 / COMMITS_PER_SECOND):
            lines = range(line, line + OUTCOMES_PER_COMMIT)
            outcomes = [Outcome(number, 200, body, num_output_tokens=100) for number in lines]
            assert self._work.commit(claim, outcomes, int(time.time())) == OUTCOMES_PER_COMMIT
            line += OUTCOMES_PER_COMMIT
            self.resident_bytes.append(self._server.memory_info().rss)

    def wait_for_commits(self, count: int) -> None:
        """Wait until `count` more are through."""
        wanted = len(self.resident_bytes) + count
        wait_for(lambda: len(self.resident_bytes) >= wanted or self.failure is not None, 120)
        assert self.failure is None

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()


def put_load_on(base_url: str, batch_id: str, server_pid: int, load: Load) -> dict[str, Any]:
    """Let the pollers and the uploaders come; what they saw."""
    done = subprocess.run(
        [
            *(sys.executable, str(GENERATOR), "--base-url", base_url, "--batch", batch_id),
            *("--server-pid", str(server_pid), "--seconds", "0"),
            *("--pollers", str(load.pollers), "--min-polls", str(load.polls)),
            *("--uploaders", str(load.uploaders), "--min-uploads", str(load.uploads)),
            *("--upload-bytes", str(load.upload_bytes)),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    print(done.stdout)  # noqa: T201  # pytest shows it when the test fails, or with -rP
    return figures


def check_waits(figures: dict[str, Any], load: Load) -> None:
    """All were served, and no status request waited for whole uploads of others."""
    polls, uploads = figures["polls"], figures["uploads"]
    assert polls["num_errors"] == uploads["num_errors"] == 0
    assert polls["count"] >= load.polls
    assert uploads["count"] >= load.uploads
    assert polls["p50_written_bytes"] < MAX_USUAL_WAIT_BYTES
    under_way_bytes = load.uploaders * load.upload_bytes
    assert polls["p99_written_bytes"] < MAX_WAIT_SHARE * under_way_bytes


@pytest.mark.parametrize("load", LOADS)
def test_watching_does_not_wait_for_uploads(
    server: Server, database: Database, tmp_path: Path, load: Load
) -> None:
    line = {
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": MODEL, "prompt": "One, two"},
    }
    content = "".join(json.dumps({"custom_id": str(i), **line}) + "\n" for i in range(NUM_LINES))
    batch_id = server.create_batch(content.encode())
    background = Background(server, database, tmp_path)
    with background:
        background.wait_for_commits(5)
        num_before = len(background.resident_bytes)
        figures = put_load_on(server.base_url, batch_id, server.process.pid, load)
        # The engine gets on, too.
        background.wait_for_commits(5)
    assert background.failure is None
    check_waits(figures, load)
    before, during = (
        background.resident_bytes[:num_before],
        background.resident_bytes[num_before:],
    )
    growth_bytes = max(during) - max(before)
    assert growth_bytes < MAX_GROWTH_BYTES, f"memory grew by {growth_bytes / MIB:.0f} MiB"
    assert "Traceback" not in server.log


def test_watching_does_not_wait_for_an_engine(installation: Any) -> None:
    """`trunkline serve`: the engine beside the server takes the processors that are left."""
    installation.start(
        *("--model", str(small_model()), "--served-model-name", MODEL, "--max-batch-tokens", "64"),
        *("--kv-cache-bytes", str(64 * MIB)),
    )
    (engine,) = installation.engines()
    server = psutil.Process(installation.process.pid)
    assert engine.nice() > server.nice()

    body = {"model": MODEL, "prompt": "One, two", "max_tokens": 8000, "ignore_eos": True}
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
        for i in range(NUM_LINES)  # more than an engine answers meanwhile
    ]
    client = installation.client
    batch = installation.submit("/v1/completions", lines)

    def tokens() -> int:
        (only,) = httpx.get(f"{client.base_url}engines").json()["data"]
        return int(only["figures"].get("num_output_tokens", 0))

    installation.wait_for(lambda: tokens() > 0, 120)
    before = tokens()
    figures = put_load_on(f"http://127.0.0.1:{installation.port}", batch.id, server.pid, SMALL)
    check_waits(figures, SMALL)
    installation.wait_for(lambda: tokens() > before, 120)
    assert client.batches.retrieve(batch.id).status == "in_progress"
