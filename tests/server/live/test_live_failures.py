"""Engines that die, answers that do not come, servers that stop: every client gets a reply."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa

from tests.server.live_server import CHAT
from tests.server.stores import every_store
from tests.support import wait_for
from trunkline.store.schema import live_requests


def watched_client(server: Any, on_response: Any, max_retries: int) -> openai.OpenAI:
    """The official client; each of its replies is shown to `on_response` first."""
    return openai.OpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="unused",
        max_retries=max_retries,
        http_client=httpx.Client(event_hooks={"response": [on_response]}),
    )


def events(text: str) -> list[Any]:
    """The data of the events of a stream."""
    return [json.loads(each.split("data: ")[1]) for each in text.split("\n\n") if "data: " in each]


@every_store
def test_an_engine_that_dies(server: Any, make_live_engine: Any) -> None:
    """Clients with a part of a stream get an error in it, those with nothing a status."""
    engine = make_live_engine(server.database)

    def begin(request: Any) -> None:
        if request.is_streaming:
            engine.send(request, 0, {"a": 1})

    engine.on_request = begin
    with ThreadPoolExecutor(3) as pool:
        replies = [
            pool.submit(server.http.post, path, json={"model": engine.model, "stream": stream})
            for path, stream in ((CHAT, False), (CHAT, True), ("/v1/responses", True))
        ]
        wait_for(lambda: len(engine.seen) == 3)
        engine.die()
        engine.be_missed()
        plain, chat, response = (reply.result() for reply in replies)
    assert plain.status_code == 503
    assert plain.json()["error"]["code"] == "engine_stopped"
    assert plain.json()["error"]["type"] == "server_error"
    assert int(plain.headers["retry-after"]) > 0
    assert (chat.status_code, response.status_code) == (200, 200)
    assert events(chat.text)[0] == {"a": 1}
    assert events(chat.text)[1]["error"]["code"] == "engine_stopped"
    assert events(response.text)[1]["type"] == "error"
    assert events(response.text)[1]["code"] == "engine_stopped"
    assert "[DONE]" not in chat.text
    wait_for(lambda: engine.num_rows() == 0)


def test_an_engine_that_dies_before_it_takes_a_request(server: Any, make_live_engine: Any) -> None:
    engine = make_live_engine(server.database)
    engine.die()
    body = {"model": engine.model}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.http.post, CHAT, json={**body, "stream": True})
        wait_for(lambda: engine.num_rows() == 1)
        engine.be_missed()
        reply = waiting.result()
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_stopped"
    reply = server.http.post(CHAT, json=body)
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_unavailable"


def test_the_official_client_asks_again(server: Any, make_live_engine: Any) -> None:
    engine = make_live_engine(server.database)
    engine.on_request = engine.ignore
    other = make_live_engine(server.database, engine.model)
    other.die()

    def take_over() -> None:
        wait_for(lambda: engine.seen)
        engine.die()
        other.start()
        engine.be_missed()

    def be_impatient(response: httpx.Response) -> None:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) > 0
            response.headers["retry-after-ms"] = "1"

    helper = threading.Thread(target=take_over)
    helper.start()
    with watched_client(server, be_impatient, max_retries=2) as client:
        made = client.embeddings.with_raw_response.create(model=engine.model, input="x")
    helper.join()
    assert made.retries_taken >= 1
    assert made.http_response.json()["asked"]["input"] == "x"


def test_an_engine_that_starts_anew(server: Any, make_live_engine: Any) -> None:
    """What it had not begun to answer is taken up again, as if nothing had happened."""
    engine = make_live_engine(server.database)
    begun = []

    def begin(request: Any) -> None:
        if request.is_streaming:
            engine.send(request, 0, {"a": 1})
        begun.append(request)

    engine.on_request = begin
    body = {"model": engine.model, "stream": True}
    with (
        ThreadPoolExecutor(1) as pool,
        server.http.stream("POST", CHAT, json=body) as stream,
    ):
        chunks = stream.iter_text()
        assert events(next(chunks)) == [{"a": 1}]  # a part of the answer has gone out
        plain = pool.submit(server.http.post, CHAT, json={**body, "stream": False})
        wait_for(lambda: len(begun) == 2)
        engine.die()
        engine.on_request = engine.echo
        engine.start()
        assert plain.result().json()["asked"] == {**body, "stream": False}
        assert events("".join(chunks))[0]["error"]["code"] == "engine_stopped"
    assert len(engine.seen) == 3


def test_an_engine_that_stops_in_order(server: Any, make_live_engine: Any) -> None:
    """What it leaves goes to another engine of the same model, as long as there is one."""
    engine = make_live_engine(server.database)
    engine.on_request = engine.ignore
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(server.http.post, CHAT, json={"model": engine.model})
        wait_for(lambda: engine.seen)
        other = make_live_engine(server.database, engine.model)
        engine.stop()
        assert reply.result().status_code == 200
        other.on_request = other.ignore
        reply = pool.submit(server.http.post, CHAT, json={"model": engine.model})
        wait_for(lambda: len(other.seen) == 2)
        other.stop()
        assert reply.result().status_code == 503


def test_answers_that_take_too_long(make_server: Any, make_live_engine: Any) -> None:
    server = make_server(live_timeout_seconds=0.5)
    engine = make_live_engine(server.database)
    engine.on_request = engine.ignore
    replies: list[int] = []
    with (
        watched_client(server, lambda reply: replies.append(reply.status_code), 2) as client,
        pytest.raises(openai.InternalServerError, match=r"within 0\.5 seconds") as caught,
    ):
        client.embeddings.create(model=engine.model, input="x")
    assert caught.value.code == "timeout"
    assert replies == [504]  # the client did not ask again
    wait_for(lambda: engine.num_rows() == 0)


def is_deaf(server: Any) -> bool:
    """Whether the server takes no new connections."""
    try:
        httpx.get(f"{server.base_url}/healthz")
    except httpx.TransportError as error:
        return isinstance(error, httpx.ConnectError)
    return False


def test_a_server_that_stops_lets_engines_answer(make_server: Any, make_live_engine: Any) -> None:
    server = make_server()
    engine = make_live_engine(server.database)
    engine.on_request = engine.ignore
    with ThreadPoolExecutor(2) as pool:
        reply = pool.submit(server.http.post, CHAT, json={"model": engine.model})
        wait_for(lambda: engine.seen)
        stopped = pool.submit(server.stop)
        wait_for(lambda: is_deaf(server))
        engine.echo(engine.seen[0])
        assert reply.result().status_code == 200
        assert stopped.result() == 0
    assert engine.num_rows() == 0


def test_what_a_killed_server_leaves(make_server: Any, make_live_engine: Any) -> None:
    server = make_server()
    engine = make_live_engine(server.database)
    engine.on_request = engine.ignore
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(server.http.post, CHAT, json={"model": engine.model})
        wait_for(lambda: engine.seen)
        server.kill()
        assert reply.exception() is not None
    assert engine.num_rows() == 1
    server.start()
    with server.database.read() as connection:
        assert connection.execute(sa.select(live_requests)).all() == []
