"""A server that is killed at its work, and two servers that share it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
from sqlalchemy import select

from tests.server.held_input import held_input
from tests.server.live_server import HANG_SECONDS
from tests.server.stores import on_sqlite
from tests.support import wait_for
from trunkline.store.schema import batches

NUM_LINES = 100


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def lease_holder(server: Any, batch_id: str) -> str | None:
    with server.database.read() as connection:
        holder: str | None = connection.execute(
            select(batches.c.lease_holder).where(batches.c.id == batch_id)
        ).scalar_one()
    return holder


def children(server: Any) -> list[psutil.Process]:
    """The processes that the server has started."""
    found: list[psutil.Process] = psutil.Process(server.process.pid).children(recursive=True)
    assert found
    return found


def check_all_end(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, HANG_SECONDS)[1] == []


@on_sqlite
def test_a_killed_server_goes_on_where_it_was(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    # A server of the same name takes its own work back at once, whatever its lease.
    server = make_server(server_lease_seconds=86_400)
    engine = make_engine(server)
    with held_input(server, jsonl(engine.lines(NUM_LINES))) as held:
        left_behind = children(server)
        server.kill()
        check_all_end(left_behind)
    assert lease_holder(server, held.batch.id) is not None
    held.restore()
    server.start()
    batch = server.wait(held.batch.id, "in_progress")
    assert batch.request_counts.total == NUM_LINES
    assert sum(1 for _ in engine.work.unfinished(engine.claim())) == NUM_LINES


def test_another_server_takes_over_when_the_lease_has_run_out(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    first = make_server(server_name="first", server_lease_seconds=2)
    content = jsonl(make_engine(first).lines(NUM_LINES))
    with held_input(first, content) as held:
        assert lease_holder(first, held.batch.id) == "first"
        left_behind = children(first)
        first.kill()
        check_all_end(left_behind)
    held.restore()
    second = make_server(server_name="second", server_lease_seconds=2)
    batch = second.wait(held.batch.id, "in_progress")
    assert batch.request_counts.total == NUM_LINES
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
    expected = [(batch_id, status) for batch_id in made for status in ("validating", "finalizing")]

    def steps() -> list[tuple[str, str]]:
        # Both servers write to one log.
        return re.findall(r"batch (\S+): (\w+) -> ", servers[0].log)

    # A batch has ended a little before its server says so.
    wait_for(lambda: len(steps()) >= len(expected))
    for server in servers:
        server.stop()
    assert Counter(steps()) == Counter(expected)


@on_sqlite
def test_a_stopped_server_leaves_nothing_behind(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    server = make_server()
    with held_input(server, jsonl(make_engine(server).lines(NUM_LINES))) as held:
        left_behind = children(server)
        assert server.stop() == 0
        check_all_end(left_behind)
    assert not [path for path in server.blobs() if path.suffix == ".part"]
    held.restore()
    server.start()
    assert server.wait(held.batch.id, "in_progress").request_counts.total == NUM_LINES
    assert "Traceback" not in server.log


@on_sqlite
def test_a_worker_that_dies_is_replaced(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    server = make_server(server_lease_seconds=2)
    with held_input(server, jsonl(make_engine(server).lines(NUM_LINES))) as held:
        (worker,) = [
            child for child in children(server) if "spawn_main" in " ".join(child.cmdline())
        ]
        held.restore()
        worker.kill()
        check_all_end([worker])
    batch = server.wait(held.batch.id, "in_progress")
    assert batch.request_counts.total == NUM_LINES
    assert server.http.get("/healthz").status_code == 200


def test_others_are_answered_while_a_batch_is_validated(
    sqlite_server: Any, make_engine: Callable[..., Any]
) -> None:
    server = sqlite_server
    with held_input(server, jsonl(make_engine(server).lines(NUM_LINES))) as held:
        for _ in range(20):
            assert server.client.batches.retrieve(held.batch.id).status == "validating"
            file = server.upload(b"{}\n")
            assert server.client.files.content(file.id).content == b"{}\n"
        held.go_on()
        assert server.wait(held.batch.id, "in_progress").request_counts.total == NUM_LINES
