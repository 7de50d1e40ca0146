"""Streams: the engine's events as they come, through the official client and as bytes."""

from __future__ import annotations

import json
import threading
from typing import Any

import openai
import pytest

from tests.server.live_server import CHAT, HANG_SECONDS
from tests.server.stores import every_store
from tests.support import wait_for


def chat_chunk(text: str | None, finish_reason: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }


def completion_chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }


def response_object(status: str) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def test_chat(server: Any, live_engine: Any) -> None:
    words = ["Grüß", " Gott", "\n", "data: x\n\n", "🙂"]

    def stream(request: Any) -> None:
        assert request.is_streaming
        for number, word in enumerate(words):
            live_engine.send(request, number, chat_chunk(word))
        live_engine.send(request, len(words), chat_chunk(None, "stop"))
        live_engine.live.answer(request.id, 200, "")

    live_engine.on_request = stream
    chunks = list(
        server.client.chat.completions.create(model=live_engine.model, messages=[], stream=True)
    )
    assert [chunk.choices[0].delta.content for chunk in chunks] == [*words, None]
    assert chunks[-1].choices[0].finish_reason == "stop"
    wait_for(lambda: live_engine.num_rows() == 0)


def test_events_come_one_by_one(server: Any, live_engine: Any) -> None:
    """Each event is seen before the next one is made."""
    has_seen = threading.Semaphore(0)

    def stream(request: Any) -> None:
        for number in range(5):
            live_engine.send(request, number, completion_chunk(str(number)))
            assert has_seen.acquire(timeout=HANG_SECONDS)
        live_engine.live.answer(request.id, 200, "{}")

    live_engine.on_request = stream
    texts = []
    for chunk in server.client.completions.create(model=live_engine.model, prompt="x", stream=True):
        texts.append(chunk.choices[0].text)
        has_seen.release()
    assert texts == list("01234")


@every_store
def test_the_bytes_of_a_stream(server: Any, live_engine: Any) -> None:
    def stream(request: Any) -> None:
        live_engine.send(request, 1, {"a": 1})
        live_engine.send(request, 2, {"a": "é"}, "named")
        live_engine.live.answer(request.id, 200, "{}")

    live_engine.on_request = stream
    body = {"model": live_engine.model, "stream": True}
    reply = server.http.post(CHAT, json=body)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-request-id"].startswith("req_")
    events = 'data: {"a": 1}\n\nevent: named\ndata: {"a": "\\u00e9"}\n\n'
    assert reply.text == f"{events}data: [DONE]\n\n"
    # The last event of /v1/responses is one of its own.
    assert server.http.post("/v1/responses", json=body).text == events


def test_responses(server: Any, live_engine: Any) -> None:
    def stream(request: Any) -> None:
        delta = {
            "item_id": "i",
            "output_index": 0,
            "content_index": 0,
            "delta": "é",
            "logprobs": [],
        }
        for number, (name, rest) in enumerate(
            [
                ("response.created", {"response": response_object("in_progress")}),
                ("response.output_text.delta", delta),
                ("response.completed", {"response": response_object("completed")}),
            ]
        ):
            live_engine.send(
                request, number, {"type": name, "sequence_number": number, **rest}, name
            )
        live_engine.live.answer(request.id, 200, "{}")

    live_engine.on_request = stream
    events = list(server.client.responses.create(model=live_engine.model, input="x", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.output_text.delta",
        "response.completed",
    ]
    assert events[1].delta == "é"


def test_only_some_endpoints_stream(server: Any, live_engine: Any) -> None:
    body = {"model": live_engine.model, "stream": True}
    assert server.http.post("/v1/embeddings", json=body).json()["asked"] == body
    body["stream"] = "yes"  # what is wrong with it is the engine's to say
    assert server.http.post(CHAT, json=body).json()["asked"] == body
    assert [seen.is_streaming for seen in live_engine.seen] == [False, False]


def test_an_error_in_the_middle(server: Any, live_engine: Any) -> None:
    def stream(request: Any) -> None:
        live_engine.send(request, 0, chat_chunk("a"))
        live_engine.refuse(request, 500)

    live_engine.on_request = stream
    chunks = server.client.chat.completions.create(
        model=live_engine.model, messages=[], stream=True
    )
    assert next(iter(chunks)).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError, match="too warm"):
        next(iter(chunks))
    reply = server.http.post(CHAT, json={"model": live_engine.model, "stream": True})
    assert json.loads(reply.text.split("data: ")[-1])["error"]["param"] == "temperature"
    assert "[DONE]" not in reply.text
    wait_for(lambda: live_engine.num_rows() == 0)


def test_an_error_in_the_middle_of_a_response(server: Any, live_engine: Any) -> None:
    def stream(request: Any) -> None:
        created = {"type": "response.created", "sequence_number": 0}
        created["response"] = response_object("in_progress")
        live_engine.send(request, 0, created, "response.created")
        live_engine.refuse(request, 500)

    live_engine.on_request = stream
    first, last = server.client.responses.create(model=live_engine.model, input="x", stream=True)
    assert first.type == "response.created"
    assert (last.type, last.message, last.param) == ("error", "too warm", "temperature")
    assert (last.code, last.sequence_number) == ("invalid_value", 1)


def test_a_failed_response_says_so_once(server: Any, live_engine: Any) -> None:
    def stream(request: Any) -> None:
        failed = {"type": "response.failed", "sequence_number": 0}
        failed["response"] = response_object("failed")
        live_engine.send(request, 0, failed, "response.failed")
        live_engine.refuse(request, 500)

    live_engine.on_request = stream
    (event,) = server.client.responses.create(model=live_engine.model, input="x", stream=True)
    assert event.type == "response.failed"


@every_store
def test_a_client_that_leaves_a_stream(server: Any, live_engine: Any) -> None:
    live_engine.on_request = lambda request: live_engine.send(request, 0, chat_chunk("a"))
    stream = server.client.chat.completions.create(
        model=live_engine.model, messages=[], stream=True
    )
    assert next(iter(stream)).choices[0].delta.content == "a"
    (seen,) = live_engine.seen
    assert live_engine.live.wanted([seen.id]) == {seen.id}
    stream.close()
    wait_for(lambda: not live_engine.live.wanted([seen.id]))
    assert live_engine.num_rows() == 0
    live_engine.send(seen, 1, chat_chunk("b"))
    live_engine.live.answer(seen.id, 200, "{}")
    assert live_engine.num_rows() == 0


def test_a_long_stream(server: Any, live_engine: Any) -> None:
    count = 3000

    def stream(request: Any) -> None:
        for number in range(0, count, 50):
            live_engine.live.append(
                [
                    live_engine.event(request, i, chat_chunk(str(i)))
                    for i in range(number, number + 50)
                ]
            )
        live_engine.live.answer(request.id, 200, "{}")

    live_engine.on_request = stream
    chunks = server.client.chat.completions.create(
        model=live_engine.model, messages=[], stream=True
    )
    assert [chunk.choices[0].delta.content for chunk in chunks] == list(map(str, range(count)))
