"""Requests that clients wait for, from a server to an engine and back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support import wait_for
from trunkline.store.database import Database
from trunkline.store.live import (
    CHUNK_ROWS,
    LEFTOVER_SECONDS,
    LiveAnswer,
    LiveEvent,
    LiveRequests,
    LiveState,
    LiveWork,
    NewLiveRequest,
)
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import EngineRecord
from trunkline.store.schema import live_events, live_requests

NOW = 1_000_000.0
CHAT = "/v1/chat/completions"
MODEL = "tiny"


class Live:
    """Both sides of one database, and shorthands."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.server = LiveRequests(database)
        self.engine = LiveWork(database)

    def submit(
        self,
        model: str = MODEL,
        now: float = NOW,
        server: str = "server",
        body: str = '{"é": [1]}',
        seconds: float = 60.0,
        is_streaming: bool = True,
    ) -> str:
        new = NewLiveRequest(
            DEFAULT_PROJECT_ID, CHAT, model, body, is_streaming, server, now + seconds
        )
        return self.server.submit(new, now)

    def claimed(self, engine: str = "engine") -> str:
        """A request that the engine has claimed."""
        request_id = self.submit()
        assert [r.id for r in self.engine.claim(engine, [MODEL], NOW, 1)] == [request_id]
        return request_id

    def count(self, table: sa.Table) -> int:
        with self.database.read() as connection:
            number = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
        assert number is not None
        return number

    @contextmanager
    def transactions(self) -> Iterator[list[str]]:
        """The statements that are sent meanwhile."""
        seen: list[str] = []

        def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        sa.event.listen(self.database.engine, "before_cursor_execute", note)
        try:
            yield seen
        finally:
            sa.event.remove(self.database.engine, "before_cursor_execute", note)


@pytest.fixture
def live(database: Database) -> Live:
    return Live(database)


def event(request_id: str, number: int, name: str | None = None) -> LiveEvent:
    return LiveEvent(request_id, number, name, json.dumps({"number": number}))


def test_the_way_of_a_request(live: Live) -> None:
    request_id = live.submit()
    assert live.server.poll(request_id) == LiveState((), None, None, None)
    (request,) = live.engine.claim("engine", [MODEL], NOW + 1, 8)
    assert (request.id, request.project_id) == (request_id, DEFAULT_PROJECT_ID)
    assert (request.endpoint, request.model, request.body) == (CHAT, MODEL, {"é": [1]})
    assert request.is_streaming
    assert request.created_at == NOW
    assert live.server.poll(request_id) == LiveState((), None, None, "engine")
    live.engine.append([event(request_id, 0), event(request_id, 1, "named")])
    state = live.server.poll(request_id)
    assert state is not None
    assert state.events == (event(request_id, 0), event(request_id, 1, "named"))
    live.engine.append([event(request_id, 2)])
    live.engine.answer(request_id, 200, "{}")
    expected = LiveState((event(request_id, 2),), 200, "{}", "engine")
    assert live.server.poll(request_id, after_number=1) == expected
    live.server.withdraw(request_id)
    assert live.server.poll(request_id) is None
    assert live.count(live_requests) == live.count(live_events) == 0


def test_those_that_wait_longest_are_claimed_first(live: Live) -> None:
    late = live.submit(now=NOW + 5)
    early = [live.submit(now=NOW) for _ in range(3)]
    live.submit(model="other", now=NOW - 5)
    live.submit(now=NOW - 100)  # nobody waits for it any more
    found = [live.engine.claim("engine", [MODEL, "third"], NOW + 6, 2) for _ in range(3)]
    assert [[r.id for r in claimed] for claimed in found] == [early[:2], [early[2], late], []]


def test_looking_for_work_writes_nothing(live: Live) -> None:
    live.submit(model="other")
    live.claimed()
    with live.transactions() as statements:
        for _ in range(5):
            assert live.engine.claim("engine", [MODEL], NOW, 8) == []
    others = [s for s in statements if not s.startswith("SELECT") and s != "BEGIN"]
    assert others == []


def test_only_who_has_claimed_may_write(live: Live) -> None:
    request_id = live.claimed()
    other = LiveWork(live.database)
    other.append([event(request_id, 0)])
    other.answer(request_id, 200, "{}")
    assert other.wanted([request_id]) == set()
    assert live.server.poll(request_id) == LiveState((), None, None, "engine")
    assert live.engine.wanted([request_id, "live_none"]) == {request_id}


def test_what_is_written_for_a_withdrawn_request_is_dropped(live: Live) -> None:
    gone, kept = live.claimed(), live.claimed()
    live.server.withdraw(gone)
    assert live.engine.wanted([gone, kept]) == {kept}
    live.engine.commit(
        [event(gone, 0), event(kept, 0)], [LiveAnswer(gone, 200, "{}"), LiveAnswer(kept, 400, "[]")]
    )
    states = live.server.poll_many({gone: -1, kept: -1})
    assert states == {kept: LiveState((event(kept, 0),), 400, "[]", "engine")}
    live.server.withdraw(gone)


def test_the_first_answer_stays(live: Live) -> None:
    request_id = live.claimed()
    live.engine.answer(request_id, 200, '"first"')
    live.engine.answer(request_id, 500, '"second"')
    state = live.server.poll(request_id)
    assert state is not None
    assert (state.status_code, state.body) == (200, '"first"')


def test_many_requests_at_once(live: Live) -> None:
    count = CHUNK_ROWS + 50
    ids = [live.submit(is_streaming=i % 2 == 0) for i in range(count)]
    claimed: list[str] = []
    while found := live.engine.claim("engine", [MODEL], NOW, 64):
        claimed += [request.id for request in found]
    assert claimed == ids
    live.engine.append([event(request_id, n) for request_id in ids[::2] for n in range(3)])
    live.engine.commit([], [LiveAnswer(request_id, 200, "{}") for request_id in ids])
    with live.transactions() as statements:
        states = live.server.poll_many(dict.fromkeys(ids, 1))
    assert sum(statement.startswith("SELECT") for statement in statements) == 4
    assert list(states) != []
    for i, request_id in enumerate(ids):
        events = (event(request_id, 2),) if i % 2 == 0 else ()
        assert states[request_id] == LiveState(events, 200, "{}", "engine")
    assert live.engine.wanted(ids) == set(ids)
    live.server.withdraw_all(ids)
    assert live.count(live_requests) == live.count(live_events) == 0
    assert live.server.poll_many({}) == {}


def test_each_request_goes_to_one_engine(database: Database) -> None:
    """Threads with connections of their own claim, answer and withdraw at the same time."""
    live = Live(database)
    num_requests, num_engines = 80, 5
    claims: list[list[str]] = [[] for _ in range(num_engines)]
    failures: list[BaseException] = []
    all_done = threading.Event()
    databases = [Database(database.engine) for _ in range(num_engines)]

    def work(number: int) -> None:
        engine = LiveWork(databases[number])
        try:
            while not all_done.is_set():
                for request in engine.claim(f"engine-{number}", [MODEL], NOW, 3):
                    claims[number].append(request.id)
                    engine.append([event(request.id, 0), event(request.id, 1)])
                    engine.answer(request.id, 200, json.dumps(number))
                all_done.wait(0.002)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(i,)) for i in range(num_engines)]
    for thread in threads:
        thread.start()
    try:
        open_ids = {live.submit(now=NOW) for _ in range(num_requests)}
        ids = set(open_ids)

        def collect() -> bool:
            assert not failures
            for request_id, state in live.server.poll_many(dict.fromkeys(open_ids, -1)).items():
                if state.status_code is not None:
                    assert [e.number for e in state.events] == [0, 1]
                    assert request_id in claims[int(state.body or "")]
                    live.server.withdraw(request_id)
                    open_ids.remove(request_id)
            return not open_ids

        wait_for(collect)
    finally:
        all_done.set()
        for thread in threads:
            thread.join()
    assert not failures
    claimed = [request_id for each in claims for request_id in each]
    assert len(claimed) == num_requests
    assert set(claimed) == ids


def record(name: str, started_at: float) -> EngineRecord:
    return EngineRecord(name, MODEL, "cpu", "float32", int(started_at), started_at, 2048, {})


@pytest.mark.parametrize("ends", ["in order", "by a crash"])
def test_what_an_engine_leaves(live: Live, store: Any, ends: str) -> None:
    """It is free again, unless the client has a part of the answer already."""
    store.work.register(record("engine", NOW))
    untouched, begun, answered = (live.claimed() for _ in range(3))
    others = live.claimed("another engine")
    live.engine.append([event(begun, 0), event(answered, 0)])
    live.engine.answer(answered, 200, "{}")
    if ends == "in order":
        store.work.unregister("engine", NOW + 1)
        assert store.engines.alive(NOW + 2, 30) == {}
    else:
        store.work.register(record("engine", NOW + 1))
        assert store.engines.alive(NOW + 2, 30) == {"engine": MODEL}
    assert live.server.poll(begun) is None
    assert live.server.poll(untouched) == LiveState((), None, None, None)
    state = live.server.poll(answered)
    assert state is not None
    assert state.status_code == 200
    assert live.engine.wanted([untouched, others]) == {others}
    successor = LiveWork(live.database)
    assert [r.id for r in successor.claim("engine", [MODEL], NOW, 8)] == [untouched]
    # The former process, if it lives on, does no harm.
    live.engine.append([event(untouched, 0), event(begun, 1)])
    live.engine.answer(untouched, 500, "{}")
    successor.append([event(untouched, 0)])
    assert live.server.poll(untouched) == LiveState((event(untouched, 0),), None, None, "engine")


def test_leftovers_are_deleted(live: Live) -> None:
    mine, other = live.submit(server="mine"), live.submit(server="other")
    assert live.server.withdraw_all_of("mine") == 1
    assert live.server.withdraw_all_of("mine") == 0
    assert set(live.server.poll_many({mine: -1, other: -1})) == {other}
    end = NOW + 60 + LEFTOVER_SECONDS
    assert live.server.sweep(end) == 0
    assert live.server.sweep(end + 1) == 1
    assert live.count(live_requests) == 0


def test_commits_wait_for_the_disk_unless_told_otherwise(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        query, durable, other = "PRAGMA synchronous", 2, 1
    else:
        query, durable, other = "SHOW synchronous_commit", "on", "off"
    with database.write(is_durable=False) as connection:
        assert connection.exec_driver_sql(query).scalar() == other
    for _ in range(2):
        with database.write() as connection:
            assert connection.exec_driver_sql(query).scalar() == durable
        with pytest.raises(RuntimeError), database.write(is_durable=False) as connection:
            raise RuntimeError
