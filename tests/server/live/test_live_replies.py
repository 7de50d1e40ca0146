"""Requests with one reply: the engine's answer as it stands, and what is refused before it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.server.live_server import CHAT
from tests.server.stores import every_store
from tests.support import wait_for
from trunkline.server.routes.inference import MAX_LIVE_BODY_BYTES
from trunkline.store.endpoints import ENDPOINTS
from trunkline.store.projects import DEFAULT_PROJECT_ID


def chat_completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


@every_store
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_is_answered(server: Any, live_engine: Any, endpoint: str) -> None:
    body = {"model": live_engine.model, "extra": ["grüß Gott", 1.5, None]}
    reply = server.http.post(endpoint, json=body)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.json() == {"endpoint": endpoint, "asked": body}
    (seen,) = live_engine.seen
    assert (seen.project_id, seen.is_streaming) == (DEFAULT_PROJECT_ID, False)
    wait_for(lambda: live_engine.num_rows() == 0)


def test_the_official_client(server: Any, live_engine: Any) -> None:
    def answer(request: Any) -> None:
        text = request.body["messages"][0]["content"]
        live_engine.live.answer(request.id, 200, json.dumps(chat_completion(f"you said {text}")))

    live_engine.on_request = answer
    made = server.client.chat.completions.create(
        model=live_engine.model, messages=[{"role": "user", "content": "é"}]
    )
    assert made.choices[0].message.content == "you said é"
    assert made.usage.total_tokens == 3


def test_the_engines_errors_are_passed_on(server: Any, live_engine: Any) -> None:
    for is_streaming in (False, True):
        live_engine.on_request = live_engine.refuse
        with pytest.raises(openai.BadRequestError, match="too warm") as caught:
            server.client.chat.completions.create(
                model=live_engine.model, messages=[], stream=is_streaming
            )
        assert caught.value.param == "temperature"
        assert caught.value.code == "invalid_value"
        live_engine.on_request = lambda request: live_engine.refuse(request, 500)
        with pytest.raises(openai.InternalServerError, match="too warm"):
            server.client.completions.create(
                model=live_engine.model, prompt="x", stream=is_streaming
            )
    wait_for(lambda: live_engine.num_rows() == 0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_no_engine_serves(server: Any, endpoint: str) -> None:
    reply = server.http.post(endpoint, json={"model": "nobody's"})
    assert reply.status_code == 404
    assert reply.json()["error"] == {
        "message": "The model 'nobody's' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_model_whose_engine_is_not_there_yet(server: Any) -> None:
    reply = server.http.post(CHAT, json={"model": "tiny", "stream": True})
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_unavailable"
    assert reply.json()["error"]["type"] == "server_error"
    assert 0 < int(reply.headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"nonsense", None, None),
        (b'{"model": "a", "x": NaN}', None, None),
        (b"[1]", None, None),
        (b'"\\ud800"', None, None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"model": null}', "missing_required_parameter", "model"),
        (b'{"model": ["a"]}', "invalid_type", "model"),
    ],
)
def test_what_is_no_request(
    server: Any, content: bytes, code: str | None, param: str | None
) -> None:
    reply = server.http.post(CHAT, content=content)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_a_body_may_be_long_but_not_too_long(server: Any, live_engine: Any) -> None:
    live_engine.on_request = lambda request: live_engine.live.answer(
        request.id, 200, json.dumps(len(request.body["prompt"]))
    )
    body = {"model": live_engine.model, "prompt": "x" * 5_000_000}
    assert server.http.post("/v1/completions", json=body).json() == 5_000_000
    body["prompt"] = "x" * MAX_LIVE_BODY_BYTES
    reply = server.http.post("/v1/completions", json=body)
    assert reply.status_code == 413
    assert str(MAX_LIVE_BODY_BYTES) in reply.json()["error"]["message"]


@every_store
def test_many_at_once(server: Any, live_engine: Any) -> None:
    def ask(number: int) -> Any:
        body = {"model": live_engine.model, "number": number}
        return server.http.post(CHAT, json=body).json()["asked"]["number"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == list(range(64))
    assert len(live_engine.seen) == 64
    wait_for(lambda: live_engine.num_rows() == 0)


@every_store
def test_a_client_that_goes_away(server: Any, live_engine: Any, ask_and_leave: Any) -> None:
    live_engine.on_request = live_engine.ignore
    ask_and_leave(server, CHAT, {"model": live_engine.model}, lambda: live_engine.seen)
    (seen,) = live_engine.seen
    wait_for(lambda: not live_engine.live.wanted([seen.id]))
    assert live_engine.num_rows() == 0


def counted(server: Any, endpoint: str, status: int) -> float:
    """How many live requests have ended so, as the metrics page has it."""
    start = f'trunkline_live_requests_total{{endpoint="{endpoint}",status="{status}"}} '
    page = server.http.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(start)) for line in page if line.startswith(start))


def test_replies_are_counted(sqlite_server: Any, make_live_engine: Any, ask_and_leave: Any) -> None:
    server = sqlite_server
    kinds = {(CHAT, 200): 2, ("/v1/rerank", 400): 1, ("/v1/score", 499): 1}
    before = {kind: counted(server, *kind) for kind in kinds}
    engine = make_live_engine(server.database)
    for _ in range(2):
        server.http.post(CHAT, json={"model": engine.model})
    engine.on_request = engine.refuse
    server.http.post("/v1/rerank", json={"model": engine.model})
    engine.on_request = engine.ignore
    ask_and_leave(server, "/v1/score", {"model": engine.model}, lambda: len(engine.seen) == 4)
    for kind, count in kinds.items():
        wait_for(lambda kind=kind, count=count: counted(server, *kind) - before[kind] == count)
