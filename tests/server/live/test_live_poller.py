"""Waiting for many requests with few queries, and when there is trouble."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from tests.server.live_server import HANG_SECONDS
from tests.support import wait_for
from trunkline.server import live_poller, live_reply
from trunkline.server.app import create_app
from trunkline.server.errors import ApiError
from trunkline.server.live_poller import (
    LONGEST_PAUSE_SECONDS,
    PAUSE_GROWTH,
    SHORTEST_PAUSE_SECONDS,
    LivePoller,
    LiveWait,
)
from trunkline.server.settings import ServerSettings
from trunkline.store.database import Database
from trunkline.store.live import LiveEvent, LiveRequests, LiveState, LiveWork, NewLiveRequest
from trunkline.store.projects import DEFAULT_PROJECT_ID, Projects
from trunkline.store.records import ProjectLimits

MODEL = "tiny"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class CountingRequests(LiveRequests):
    """Counts how often it is asked, and for how many; fails the first `num_failures` times."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.num_polls = 0
        self.num_looked_for = 0
        self.num_deletions = 0
        self.num_failures = 0

    def poll_many(self, after_numbers: Mapping[str, int]) -> dict[str, LiveState]:
        self.num_polls += 1
        self.num_looked_for += len(after_numbers)
        if self.num_failures:
            self.num_failures -= 1
            raise OperationalError("SELECT", None, Exception("the database is away"))
        return super().poll_many(after_numbers)

    def withdraw_all(self, request_ids: Any) -> None:
        self.num_deletions += 1
        super().withdraw_all(request_ids)


class Waiting:
    """A poller, an engine that does nothing by itself, and a way to submit requests."""

    def __init__(self, database: Database) -> None:
        self.requests = CountingRequests(database)
        self.engine = LiveWork(database)
        self.alive = {"engine": MODEL}
        self.stopping = threading.Event()
        self.poller = LivePoller(self.requests, lambda _: dict(self.alive), self.stopping)

    def submit(self, timeout_seconds: float = 60.0, *, is_streaming: bool = True) -> LiveWait:
        now = time.time()
        new = NewLiveRequest(
            *(DEFAULT_PROJECT_ID, "/v1/completions", MODEL, "{}", is_streaming),
            server="server",
            expires_at=now + timeout_seconds,
        )
        return self.poller.wait(self.requests.submit(new, now), MODEL, timeout_seconds)


@asynccontextmanager
async def waiting_on(database: Database) -> AsyncIterator[Waiting]:
    made = Waiting(database)
    try:
        yield made
    finally:
        await made.poller.stop()


@pytest.mark.anyio
async def test_many_wait_with_few_queries(database: Database) -> None:
    before = asyncio.all_tasks()
    async with waiting_on(database) as made:
        waits = [made.submit() for _ in range(100)]
        asking = [asyncio.create_task(wait.next()) for wait in waits]
        await asyncio.to_thread(wait_for, lambda: made.requests.num_polls >= 10)
        # Each poll is for nearly all of them.
        assert made.requests.num_looked_for >= 50 * made.requests.num_polls
        for request in made.engine.claim("engine", [MODEL], time.time(), 100):
            made.engine.answer(request.id, 200, json.dumps(request.id))
        for wait, task in zip(waits, asking, strict=True):
            state = await task
            assert state is not None
            assert state.body == json.dumps(wait.request_id)
            wait.close()
        await made.poller.stop()
        assert made.requests.num_deletions <= 3
        assert made.requests.poll_many({wait.request_id: -1 for wait in waits}) == {}
        assert asyncio.all_tasks() == before, "nobody looks any more"


@pytest.mark.anyio
async def test_a_stream_is_looked_for_often_and_a_quiet_one_rarely(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = LiveEvent("live_1", 0, None, "{}")
    nothing = LiveState((), None, None, "engine")
    async with waiting_on(database) as made:
        wait = made.submit()
        loop = asyncio.get_running_loop()
        now = loop.time()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: now)
            pauses = []
            for state in (*[nothing] * 15, dataclasses.replace(nothing, events=(event,)), nothing):
                wait.tell(state)
                pauses.append(wait.due - now)
    *quiet, after_news, later = pauses
    assert quiet[0] == later == pytest.approx(SHORTEST_PAUSE_SECONDS * PAUSE_GROWTH)
    assert quiet == sorted(quiet)
    assert quiet[-1] == pytest.approx(LONGEST_PAUSE_SECONDS)
    assert after_news == pytest.approx(SHORTEST_PAUSE_SECONDS)


@pytest.mark.anyio
async def test_a_stream_goes_on_after_a_pause(database: Database) -> None:
    async with waiting_on(database) as made:
        wait = made.submit()
        (request,) = made.engine.claim("engine", [MODEL], time.time(), 1)
        assert await wait.next(timeout_seconds=0.2) is None
        for number in range(5):
            made.engine.append([LiveEvent(request.id, number, None, "{}")])
            state = await wait.next()
            assert state is not None
            assert [event.number for event in state.events] == [number]


@pytest.mark.anyio
async def test_a_question_that_is_given_up_loses_nothing(database: Database) -> None:
    async with waiting_on(database) as made:
        wait = made.submit()
        (request,) = made.engine.claim("engine", [MODEL], time.time(), 1)
        for number in range(20):
            task = asyncio.create_task(wait.next())
            await asyncio.sleep(0.002 * number)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            made.engine.append([LiveEvent(request.id, number, None, "{}")])
            if not task.cancelled():
                break
        made.engine.answer(request.id, 200, "{}")
        seen = list(task.result().events) if not task.cancelled() else []
        while True:
            state = await wait.next(timeout_seconds=HANG_SECONDS)
            assert state is not None
            seen += state.events
            if state.status_code is not None:
                break
        assert [event.number for event in seen] == list(range(len(seen)))
        assert len(seen) == number + 1


@pytest.mark.anyio
async def test_a_database_that_is_away_for_a_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_poller, "FAILED_PAUSE_SECONDS", 0.05)
    async with waiting_on(database) as made:
        made.requests.num_failures = 3
        wait = made.submit()
        (request,) = made.engine.claim("engine", [MODEL], time.time(), 1)
        made.engine.answer(request.id, 200, "{}")
        state = await wait.next(timeout_seconds=HANG_SECONDS)
        assert state is not None
        assert state.status_code == 200
    assert "live requests cannot be looked for" in caplog.text


async def refusal(wait: LiveWait) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await wait.next(timeout_seconds=HANG_SECONDS)
    return caught.value


@pytest.mark.anyio
async def test_what_ends_without_an_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_poller, "STOPPING_SECONDS", 0.2)
    monkeypatch.setattr(live_poller, "ENGINES_SECONDS", 0.05)
    async with waiting_on(database) as made:
        late = await refusal(made.submit(0.2))
        assert (late.status_code, late.code) == (504, "timeout")
        gone = made.submit()
        made.requests.withdraw(gone.request_id)
        assert (await refusal(gone)).code == "engine_stopped"
        unclaimed, claimed = made.submit(), made.submit()
        made.alive = {"other": "another model"}
        assert (await refusal(unclaimed)).code == "engine_stopped"
        made.alive = {"engine": MODEL}
        made.engine.claim("engine", [MODEL], time.time(), 5)
        made.alive = {"other": MODEL}
        assert (await refusal(claimed)).code == "engine_stopped"
        last = made.submit()
        made.stopping.set()
        stopping = await refusal(last)
        assert (stopping.status_code, stopping.code) == (503, "server_stopping")
        assert stopping.headers["retry-after"]


@pytest.mark.anyio
async def test_the_last_words_of_an_engine_are_heard(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers and stops just when somebody looks whether it lives."""
    async with waiting_on(database) as made:
        wait = made.submit()
        (request,) = made.engine.claim("engine", [MODEL], time.time(), 1)

        looks: list[float] = []

        def last_words(now: float) -> dict[str, str]:
            if not looks:
                made.engine.append([LiveEvent(request.id, 0, None, "{}")])
                made.engine.answer(request.id, 200, "{}")
            looks.append(now)
            return {}

        monkeypatch.setattr(made.poller, "_engines_alive", last_words)
        state = await wait.next(timeout_seconds=HANG_SECONDS)
        assert state is not None
        assert (len(state.events), state.status_code) == (1, 200)


@pytest.fixture
async def app_and_client(
    tmp_path: Path, database_url: str
) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    app = create_app(ServerSettings(data_dir=tmp_path, database_url=database_url))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield app, client
    await app.state.trunkline.live.stop()
    app.state.trunkline.database.close()


@pytest.mark.anyio
async def test_a_quiet_stream_is_kept_alive(
    app_and_client: tuple[Any, httpx.AsyncClient],
    make_live_engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, client = app_and_client
    monkeypatch.setattr(live_reply, "KEEP_ALIVE_SECONDS", 0.05)
    engine = make_live_engine(app.state.trunkline.database)
    is_quiet = threading.Semaphore(0)
    original_next = LiveWait.next

    async def next_and_tell(wait: LiveWait, *arguments: Any) -> LiveState | None:
        state = await original_next(wait, *arguments)
        if state is None:
            is_quiet.release()
        return state

    monkeypatch.setattr(LiveWait, "next", next_and_tell)

    def stream(request: Any) -> None:
        engine.send(request, 0, {"a": 1})
        for _ in range(2):
            assert is_quiet.acquire(timeout=HANG_SECONDS)
        engine.live.answer(request.id, 200, "{}")

    engine.on_request = stream
    body = {"model": engine.model, "stream": True}
    text = (await client.post("/v1/completions", json=body)).text
    assert text.startswith('data: {"a": 1}\n\n: still here\n\n: still here\n\n')
    assert text.endswith(": still here\n\ndata: [DONE]\n\n")


@pytest.mark.anyio
async def test_a_stream_that_takes_too_long(
    app_and_client: tuple[Any, httpx.AsyncClient],
    make_live_engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends with an error in it when its client has a part of it already."""
    app, client = app_and_client
    engine = make_live_engine(app.state.trunkline.database)
    waits: list[LiveWait] = []
    original_wait = LivePoller.wait

    def wait_and_note(*arguments: Any) -> LiveWait:
        waits.append(original_wait(*arguments))
        return waits[0]

    monkeypatch.setattr(LivePoller, "wait", wait_and_note)
    engine.on_request = lambda request: engine.send(request, 0, {"a": 1})
    body = {"model": engine.model, "stream": True}
    asking = asyncio.create_task(client.post("/v1/completions", json=body))
    await asyncio.to_thread(wait_for, lambda: waits and waits[0].after_number == 0)
    waits[0].expires_at = 0.0
    first, last, _ = (await asking).text.split("\n\n")
    assert first == 'data: {"a": 1}'
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    await asyncio.to_thread(wait_for, lambda: engine.num_rows() == 0)


@pytest.mark.anyio
async def test_a_project_may_not_ask_too_often(
    app_and_client: tuple[Any, httpx.AsyncClient],
    make_live_engine: Callable[..., Any],
) -> None:
    app, client = app_and_client
    database = app.state.trunkline.database
    Projects(database).set_limits("default", ProjectLimits(max_requests_per_minute=2))
    engine = make_live_engine(database)
    statuses = [
        (await client.post("/v1/embeddings", json={"model": engine.model})).status_code
        for _ in range(3)
    ]
    assert statuses == [200, 200, 429]
