"""An installation for a team: two API servers and two engines on one PostgreSQL and one S3."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psutil
import pytest
from openai.types import Batch
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from tests.support import free_port, wait_for
from trunkline.store.blobs import DiskBlobs
from trunkline.store.database import Database
from trunkline.store.migrate import upgrade
from trunkline.store.records import Outcome
from trunkline.store.schema import batches, engines, outcomes
from trunkline.store.work import Work

T = TypeVar("T")

MODEL = "tiny"
TERMINAL = {"completed", "failed", "expired", "cancelled"}
SERVER_LEASE_SECONDS = 2
ENGINE_LEASE_SECONDS = 2
# Few requests at once, and one batch at a time, so that there is something left to share.
SLOWLY = ("--max-batch-tokens", "4", "--commit-seconds", "0.1", "--max-held-requests", "1")
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
    def __init__(self, name: str, team: Team) -> None:
        port = free_port()
        command = ("server", "--port", str(port), "--served-model-name", MODEL)
        environment = {
            "TRUNKLINE_SERVER_NAME": name,
            "TRUNKLINE_SERVER_LEASE_SECONDS": str(SERVER_LEASE_SECONDS),
            "TRUNKLINE_SERVER_POLL_SECONDS": "0.05",
        }
        # A folder of its own: what the two share is in the database and behind the blob URL.
        location = team.location(team.folder / name)
        super().__init__(name, team.folder / f"{name}.log", *command, **environment, **location)
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

        return wait_for(ended, 120)

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]


class Engine(Part):
    def __init__(self, name: str, team: Team, model: Path) -> None:
        command = ("engine", "--model", str(model), "--served-model-name", MODEL)
        options = ("--poll-seconds", "0.1", *SMALL, *SLOWLY)
        lease = ("--lease-seconds", str(ENGINE_LEASE_SECONDS), "--engine-name", name)
        log = team.folder / f"{name}.log"
        super().__init__(name, log, *command, *options, *lease, **team.location(team.folder / name))

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
        self._parts: list[Part] = []

    def location(self, data_dir: Path) -> dict[str, str]:
        return {"TRUNKLINE_DATA_DIR": str(data_dir), **self._shared}

    def start_servers(self) -> tuple[Server, Server]:
        servers = Server("server-a", self), Server("server-b", self)
        self._parts += servers
        wait_for(lambda: all(server.is_ready() for server in servers))
        return servers

    def start_engines(self, model: Path) -> tuple[Engine, Engine]:
        started = Engine("engine-1", self, model), Engine("engine-2", self, model)
        self._parts += started

        def are_registered() -> bool:
            for engine in started:
                engine.check_alive()
            with self.database.read() as connection:
                return connection.execute(select(func.count()).select_from(engines)).scalar() == 2

        wait_for(are_registered, 120)
        return started

    def lease_holder(self, batch_id: str) -> str | None:
        query = select(batches.c.lease_holder).where(batches.c.id == batch_id)
        with self.database.read() as connection:
            holder: str | None = connection.execute(query).scalar_one()
        return holder

    def num_outcomes(self, batch_id: str) -> int:
        query = select(func.count()).where(outcomes.c.batch_id == batch_id)
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def outcomes(self) -> set[tuple[str, int, str]]:
        """Every outcome there is: its batch, its line and its id."""
        query = select(outcomes.c.batch_id, outcomes.c.line, outcomes.c.request_id)
        with self.database.read() as connection:
            return {(row.batch_id, row.line, row.request_id) for row in connection.execute(query)}

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

        wait_for(is_outside_a_transaction)

    def close(self) -> None:
        for part in self._parts:
            if part.process.poll() is None:
                part.kill()
            if isinstance(part, Server):
                part.client.close()
        self.database.close()


@pytest.fixture
def team(postgres: Any, s3_server: Any, tmp_path: Path) -> Iterator[Team]:
    url = postgres.create_database()
    upgrade(url)
    blob_url = f"s3://{s3_server.create_bucket()}/trunkline"
    shared = {"TRUNKLINE_BLOB_URL": blob_url, **s3_server.environment}
    with closing(Team(tmp_path, url, shared)) as made:
        yield made


def make_lines(count: int, max_tokens: int = 40, padding: int = 0) -> list[dict[str, Any]]:
    """Requests whose answers have `max_tokens` tokens, and some more the later ones."""
    return [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Number {i}.{' ' * padding}"}],
                "max_tokens": max_tokens + i % 7,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for i in range(count)
    ]


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def check_answers(server: Server, batch: Batch, lines: list[dict[str, Any]]) -> None:
    """Every request is answered, once and in full."""
    assert batch.status == "completed"
    assert batch.error_file_id is None
    results = server.results(batch.output_file_id)
    wanted = {line["custom_id"]: line["body"]["max_tokens"] for line in lines}
    lengths = [
        (result["custom_id"], result["response"]["body"]["usage"]["completion_tokens"])
        for result in results
    ]
    assert sorted(lengths) == sorted(wanted.items())
    assert len({result["id"] for result in results}) == len(lines)
    assert batch.request_counts is not None
    counts = batch.request_counts.model_dump()
    assert counts == {"total": len(lines), "completed": len(lines), "failed": 0}
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(wanted.values())


def test_what_one_server_is_given_the_other_has_too(team: Team, tiny_model: Path) -> None:
    first, second = team.start_servers()
    content = jsonl(make_lines(20))
    batch = first.create(content)
    assert second.client.files.content(batch.input_file_id).content == content
    wait_for(lambda: second.get(batch.id).status == "in_progress")
    assert first.get(batch.id) == second.get(batch.id)
    assert [each.id for each in second.client.batches.list()] == [batch.id]

    unwanted = first.create(content)
    assert second.client.batches.cancel(unwanted.id).status in {"cancelling", "cancelled"}
    ended = first.wait_for_end(unwanted.id)
    assert (ended.status, ended.output_file_id) == ("cancelled", None)
    for server in (first, second):
        errors = server.results(ended.error_file_id)
        assert [error["error"]["code"] for error in errors] == ["batch_cancelled"] * 20

    team.start_engines(tiny_model)
    done = second.wait_for_end(batch.id)
    assert first.get(batch.id) == done
    for server in (first, second):
        check_answers(server, done, make_lines(20))
    first.client.files.delete(batch.input_file_id)
    with pytest.raises(openai.NotFoundError):
        second.client.files.content(batch.input_file_id)


@pytest.mark.parametrize("fate", ["killed", "frozen"])
def test_an_engine_drops_out_and_the_other_carries_on(
    team: Team, tiny_model: Path, fate: str
) -> None:
    first, second = team.start_servers()
    lines = make_lines(40, max_tokens=150)
    both = team.start_engines(tiny_model)
    ids = [(first, second)[i % 2].create(jsonl(lines)).id for i in range(4)]

    def victim_and_batch() -> tuple[Engine, str] | None:
        """An engine in the middle of a batch, while both are at work."""
        if not all(engine.claimed() for engine in both):
            return None
        for engine in both:
            engine.check_alive()
            batch_id = engine.claimed()[-1]
            if 5 <= team.num_outcomes(batch_id) <= len(lines) // 2:
                return engine, batch_id
        return None

    found = wait_for(victim_and_batch, 120)
    assert found is not None
    victim, batch_id = found
    (survivor,) = (engine for engine in both if engine is not victim)
    if fate == "killed":
        victim.kill()
    else:
        team.freeze(victim, batch_id)
    assert team.lease_holder(batch_id) == victim.name
    num_done = team.num_outcomes(batch_id)

    for each in ids:
        check_answers(second, first.wait_for_end(each), lines)
    # What was committed was not run again. One more commit may have been on its way.
    assert 0 < dict(survivor.runs())[batch_id] <= len(lines) - num_done
    taken = Counter(each for engine in both for each, _ in engine.runs())
    assert taken == Counter(ids) + Counter([batch_id])

    outcomes_before = team.outcomes()
    assert Counter(each for each, _, _ in outcomes_before) == dict.fromkeys(ids, len(lines))
    if fate == "frozen":
        # It still believes that the batch is its own, and learns that it is not.
        victim.process.send_signal(signal.SIGCONT)
        wait_for(lambda: f"batch {batch_id}: lost its lease" in victim.log)
        batch = first.create(jsonl(lines))
        check_answers(second, second.wait_for_end(batch.id), lines)
        victim.check_alive()
        assert outcomes_before <= team.outcomes()
        check_answers(first, first.get(batch_id), lines)


@pytest.mark.parametrize("step", ["validating", "finalizing"])
def test_a_server_is_killed_and_the_other_carries_on(team: Team, step: str) -> None:
    servers = team.start_servers()
    num_lines = 15_000
    # Long lines take long to validate; the answers are short.
    content = jsonl(make_lines(num_lines, padding=2000 if step == "validating" else 0))
    batch_id = servers[0].create(content).id
    if step == "finalizing":
        answer_all(team, batch_id, servers[0])

    def holder() -> Server | None:
        with team.database.read() as connection:
            row = connection.execute(
                select(batches.c.lease_holder, batches.c.status).where(batches.c.id == batch_id)
            ).one()
        assert row.status not in TERMINAL, "it was through before anybody could be killed"
        if row.status != step:
            return None
        return {server.name: server for server in servers}.get(row.lease_holder)

    victim = wait_for(holder)
    assert victim is not None
    left_behind = psutil.Process(victim.process.pid).children(recursive=True)
    victim.kill()
    (survivor,) = (server for server in servers if server is not victim)
    assert survivor.get(batch_id).status == step
    assert team.lease_holder(batch_id) == victim.name

    if step == "validating":
        answer_all(team, batch_id, survivor)
    batch = survivor.wait_for_end(batch_id)
    assert batch.status == "completed"
    results = survivor.results(batch.output_file_id)
    assert Counter(result["custom_id"] for result in results) == Counter(
        line["custom_id"] for line in make_lines(num_lines)
    )
    # The input and one output: the dead server has published nothing.
    files = [file.purpose for file in survivor.client.files.list()]
    assert sorted(files) == ["batch", "batch_output"]
    _, alive = psutil.wait_procs(left_behind, timeout=10)
    assert alive == []


def answer_all(team: Team, batch_id: str, server: Server) -> None:
    """Do an engine's part, as soon as the batch is valid, at once for all lines."""
    wait_for(lambda: server.get(batch_id).status == "in_progress", 120)
    work = Work(team.database, DiskBlobs(team.folder / "unused"))
    claim = work.claim("an engine", [MODEL], time.time(), 600)
    assert claim is not None
    body = json.dumps({"object": "chat.completion", "choices": []})
    answers = [Outcome(line, 200, body) for line in work.unfinished_lines(claim)]
    assert work.commit(claim, answers, int(time.time())) == len(answers)
    assert work.finish(claim, int(time.time()))
