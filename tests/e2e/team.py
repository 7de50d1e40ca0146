"""A team's API servers and engines, in processes of their own, on one PostgreSQL and one S3."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types import Batch
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from tests.support import free_port, wait_for
from trunkline.store.database import Database
from trunkline.store.schema import batches, engines, outcomes

MODEL = "tiny"
TERMINAL = {"completed", "failed", "expired", "cancelled"}
# Longer than any test: a lease ends when its holder gives it back, or when a test ends it.
LEASE_SECONDS = 600
# Only what hangs takes so long.
WAIT_SECONDS = 240.0
# Few requests at once, and one batch at a time, so that there is something left to share.
FEW_AT_ONCE = ("--max-batch-tokens", "4", "--commit-seconds", "0.1", "--max-held-requests", "1")
SMALL = ("--device", "cpu", "--threads", "1", "--kv-cache-bytes", str(16 * 1024 * 1024))


class Part:
    """A server or an engine, in a process of its own."""

    def __init__(self, name: str, log_path: Path, *command: str, **environment: str) -> None:
        self.name = name
        self._log_path = log_path
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trunkline", *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def check_alive(self) -> None:
        assert self.process.poll() is None, f"{self.name} has ended:\n{self.log}"

    def kill(self) -> None:
        """SIGKILL to this process alone."""
        self.process.kill()
        self.process.wait()


class Server(Part):
    def __init__(self, name: str, team: Team, environment: Mapping[str, str]) -> None:
        port = free_port()
        command = ("server", "--port", str(port), "--served-model-name", MODEL)
        settings = {
            "TRUNKLINE_SERVER_NAME": name,
            "TRUNKLINE_SERVER_LEASE_SECONDS": str(LEASE_SECONDS),
            "TRUNKLINE_SERVER_POLL_SECONDS": "0.05",
        }
        # A folder of its own: what the two share is in the database and behind the blob URL.
        location = team.location(team.folder / name)
        log_path = team.folder / f"{name}.log"
        super().__init__(name, log_path, *command, **settings, **location, **environment)
        self._url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self._url}/v1", api_key="unused", max_retries=0)

    def is_ready(self) -> bool:
        self.check_alive()
        with suppress(httpx.TransportError):
            return httpx.get(f"{self._url}/readyz", timeout=10).status_code == 200
        return False

    def create(self, content: bytes) -> Batch:
        uploaded = self.client.files.create(file=("in.jsonl", content), purpose="batch")
        return self.client.batches.create(
            input_file_id=uploaded.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )

    def get(self, batch_id: str) -> Batch:
        return self.client.batches.retrieve(batch_id)

    def wait_for_end(self, batch_id: str) -> Batch:
        def ended() -> Batch | None:
            batch = self.get(batch_id)
            return batch if batch.status in TERMINAL else None

        return wait_for(ended, WAIT_SECONDS)

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]


class Engine(Part):
    def __init__(self, name: str, team: Team, model: Path, environment: Mapping[str, str]) -> None:
        command = ("engine", "--model", str(model), "--served-model-name", MODEL)
        options = ("--poll-seconds", "0.1", *SMALL, *FEW_AT_ONCE)
        lease = ("--lease-seconds", str(LEASE_SECONDS), "--engine-name", name)
        location = team.location(team.folder / name)
        log_path = team.folder / f"{name}.log"
        super().__init__(name, log_path, *command, *options, *lease, **location, **environment)

    def claimed(self) -> list[str]:
        """The batches that it has begun with, in order."""
        return re.findall(r"batch (\w+): claimed", self.log)

    def runs(self) -> list[tuple[str, int]]:
        """Each batch that it took, and how many requests were left of it."""
        found = re.findall(r"batch (\w+): running (\d+) requests", self.log)
        return [(batch_id, int(count)) for batch_id, count in found]


class Team:
    """The shared store, and the processes that work on it."""

    def __init__(self, folder: Path, database_url: str, shared: Mapping[str, str]) -> None:
        self.folder = folder
        self.database = Database.open(database_url)
        self._shared = {"TRUNKLINE_DATABASE_URL": database_url, **shared}
        self._servers: list[Server] = []
        self._engines: list[Engine] = []

    def location(self, data_dir: Path) -> dict[str, str]:
        return {"TRUNKLINE_DATA_DIR": str(data_dir), **self._shared}

    @property
    def servers(self) -> tuple[Server, Server]:
        first, second = self._servers
        return first, second

    def start_servers(self, environment: Mapping[str, str] | None = None) -> None:
        """Start two servers, and wait until they are ready."""
        names = ("server-a", "server-b")
        self._servers += [Server(name, self, environment or {}) for name in names]
        wait_for(lambda: all(server.is_ready() for server in self._servers), WAIT_SECONDS)

    def start_engines(
        self, model: Path, num_engines: int, environment: Mapping[str, str] | None = None
    ) -> list[Engine]:
        """Start engines of names that were not there before; wait until they are ready."""
        names = [f"engine-{len(self._engines) + i}" for i in range(1, num_engines + 1)]
        started = [Engine(name, self, model, environment or {}) for name in names]
        self._engines += started

        def are_registered() -> bool:
            for engine in started:
                engine.check_alive()
            with self.database.read() as connection:
                return set(names) <= set(connection.execute(select(engines.c.name)).scalars())

        wait_for(are_registered, WAIT_SECONDS)
        return started

    def kill_engines(self) -> None:
        """SIGKILL to every engine."""
        for engine in self._engines:
            engine.kill()

    def lease_holder(self, batch_id: str) -> str | None:
        query = select(batches.c.lease_holder).where(batches.c.id == batch_id)
        with self.database.read() as connection:
            holder: str | None = connection.execute(query).scalar_one()
        return holder

    def end_lease(self, batch_id: str) -> None:
        """Let the time be over for which somebody has claimed the batch."""
        ended = update(batches).where(batches.c.id == batch_id).values(lease_expires_at=0)
        with self.database.write() as connection:
            connection.execute(ended)

    def num_outcomes(self, batch_id: str) -> int:
        query = select(func.count()).where(outcomes.c.batch_id == batch_id)
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def outcomes(self, batch_ids: Iterable[str]) -> set[tuple[str, int, str]]:
        """Every outcome of these batches: its batch, its line and its id."""
        query = select(outcomes.c.batch_id, outcomes.c.line, outcomes.c.request_id)
        of_these = query.where(outcomes.c.batch_id.in_(batch_ids))
        with self.database.read() as connection:
            return {
                (row.batch_id, row.line, row.request_id) for row in connection.execute(of_these)
            }

    def freeze(self, engine: Engine, batch_id: str) -> None:
        """Stop the engine while it is not in a transaction, which nobody else could get past."""
        query = select(batches.c.id).where(batches.c.id == batch_id).with_for_update(nowait=True)

        def is_outside_a_transaction() -> bool:
            engine.process.send_signal(signal.SIGSTOP)
            try:
                with self.database.write() as connection:
                    connection.execute(query)
            except OperationalError:
                engine.process.send_signal(signal.SIGCONT)
                return False
            return True

        wait_for(is_outside_a_transaction, WAIT_SECONDS)

    def close(self) -> None:
        self.kill_engines()
        for server in self._servers:
            server.kill()
            server.client.close()
        self.database.close()
