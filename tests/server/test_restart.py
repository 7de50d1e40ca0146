"""A server that is killed at its work, and two servers that share it."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from tests.support import wait_for
from trunkline.store.schema import batches

NUM_LINES = 20_000


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def large_input(engine: Any) -> bytes:
    """An input file whose validation takes long enough to be interrupted."""
    return jsonl([engine.line(f"request-{i}", user="x" * 2000) for i in range(NUM_LINES)])


def lease_holder(server: Any, batch_id: str) -> str | None:
    with server.database.read() as connection:
        holder: str | None = connection.execute(
            select(batches.c.lease_holder).where(batches.c.id == batch_id)
        ).scalar_one()
    return holder


def kill_while_it_validates(server: Any, batch_id: str) -> list[psutil.Process]:
    """SIGKILL to the server's process alone; the processes that it leaves behind."""
    wait_for(lambda: lease_holder(server, batch_id) is not None)
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.kill()
    return children


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_a_killed_server_goes_on_where_it_was(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    server = make_server()
    engine = make_engine(server)
    batch = server.create(large_input(engine))
    left_behind = kill_while_it_validates(server, batch.id)
    server.start()
    started = time.monotonic()
    batch = server.wait(batch.id, "in_progress")
    # Far less than a lease: a server of the same name takes its own work back at once.
    assert time.monotonic() - started < 20
    assert batch.request_counts.total == NUM_LINES
    assert sum(1 for _ in engine.work.unfinished(engine.claim())) == NUM_LINES
    _, alive = psutil.wait_procs(left_behind, timeout=10)
    assert alive == []


def test_another_server_takes_over_when_the_lease_has_run_out(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    first = make_server(server_name="first", server_lease_seconds=2)
    batch = first.create(large_input(make_engine(first)))
    wait_for(lambda: lease_holder(first, batch.id) is not None)
    assert lease_holder(first, batch.id) == "first"
    kill_while_it_validates(first, batch.id)
    second = make_server(server_name="second", server_lease_seconds=2)
    assert second.wait(batch.id, "in_progress").request_counts.total == NUM_LINES
    wait_for(lambda: f"batch {batch.id}: validating -> in_progress" in second.log)


def test_two_servers_give_each_batch_to_one(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    servers = [make_server(server_name=name) for name in ("first", "second")]
    engine = make_engine(servers[0])
    content = jsonl(engine.lines(20))
    made = [servers[i % 2].create(content).id for i in range(12)]
    for i, batch_id in enumerate(made):
        # What one server has created, the other one shows too.
        servers[(i + 1) % 2].wait(batch_id, "in_progress", "finalizing", "completed")
        engine.complete(engine.claim())
    for batch_id in made:
        batch = servers[0].wait(batch_id, "completed")
        assert len(servers[1].results(batch.output_file_id)) == 20
    for server in servers:
        server.stop()
    # Both servers write to one log.
    steps = Counter(re.findall(r"batch (\S+): (\w+) -> ", servers[0].log))
    expected = [(batch_id, status) for batch_id in made for status in ("validating", "finalizing")]
    assert steps == Counter(expected)


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_a_stopped_server_leaves_nothing_behind(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    server = make_server()
    batch = server.create(large_input(make_engine(server)))
    wait_for(lambda: lease_holder(server, batch.id) is not None)
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert server.stop() == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert not [path for path in server.blobs() if path.suffix == ".part"]
    server.start()
    assert server.wait(batch.id, "in_progress").request_counts.total == NUM_LINES
    assert "Traceback" not in server.log


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_a_worker_that_dies_is_replaced(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    server = make_server(server_lease_seconds=2)
    batch = server.create(large_input(make_engine(server)))
    wait_for(lambda: lease_holder(server, batch.id) is not None)

    def workers() -> list[psutil.Process]:
        children = psutil.Process(server.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    wait_for(lambda: bool(workers()))
    for worker in workers():
        worker.kill()
    batch = server.wait(batch.id, "in_progress")
    assert batch.request_counts.total == NUM_LINES
    assert server.http.get("/healthz").status_code == 200
