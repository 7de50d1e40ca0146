"""The same requests live and in batches, and what happens to one when the other is there."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.e2e.braking import Brake
from tests.e2e.endpoints.asking import (
    ABOUT_PARIS,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    FACTS_SCHEMA,
    RERANK,
    RESPONSES,
    RESPONSES_TOOLS,
    SCORE,
    TEXTS,
    TOOLS,
    TWO_QUESTIONS,
    ask,
    say,
)
from tests.e2e.small_engine import MODEL, STEP_TOKENS

pytestmark = pytest.mark.e2e


def as_lines(endpoint: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": endpoint,
            "body": {"model": MODEL, **body},
        }
        for i, body in enumerate(bodies)
    ]


GREEDY = {"temperature": 0, "max_tokens": 8}
BODIES: Mapping[str, list[dict[str, Any]]] = {
    CHAT: [
        {**GREEDY, "messages": say(ABOUT_PARIS), "n": 2, "logprobs": True, "top_logprobs": 2},
        {
            "temperature": 0,
            "messages": say(ABOUT_PARIS),
            "response_format": {"type": "json_schema", "json_schema": FACTS_SCHEMA},
        },
        {
            "temperature": 0,
            "max_tokens": 120,
            "messages": say(TWO_QUESTIONS),
            "tools": TOOLS,
            "tool_choice": "required",
        },
        {
            **GREEDY,
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "What is an owl?"}]},
                {"role": "assistant", "content": "An owl is", "prefix": True},
            ],
        },
    ],
    COMPLETIONS: [
        {**GREEDY, "prompt": "Two and two", "echo": True, "logprobs": 1},
        {**GREEDY, "prompt": [[504, 3575], [260] * 6], "n": 2},
        {**GREEDY, "prompt": "Red or blue? ", "structured_outputs": {"choice": ["red", "blue"]}},
    ],
    RESPONSES: [
        {"temperature": 0, "max_output_tokens": 8, "input": ABOUT_PARIS},
        {
            "temperature": 0,
            "input": ABOUT_PARIS,
            "text": {"format": {"type": "json_schema", **FACTS_SCHEMA}},
        },
        {
            "temperature": 0,
            "max_output_tokens": 120,
            "input": TWO_QUESTIONS,
            "tools": RESPONSES_TOOLS,
            "tool_choice": "required",
        },
    ],
    EMBEDDINGS: [
        {"input": TEXTS},
        {"input": TEXTS[0], "dimensions": 32},
        {"input": TEXTS, "encoding_format": "base64"},
    ],
    SCORE: [{"text_1": TEXTS[0], "text_2": TEXTS[1:]}, {"queries": TEXTS, "documents": TEXTS}],
    RERANK: [{"query": TEXTS[0], "documents": TEXTS}],
}
# They differ from one answer to the next.
NOT_COMPARED = {"id", "call_id", "created", "created_at", "completed_at", "cached_tokens"}


def decoded(embedding: str) -> list[float]:
    vector: list[float] = np.frombuffer(base64.b64decode(embedding), "<f4").tolist()
    return vector


def check_same(one: Any, other: Any, path: str = "answer") -> None:
    """Both are the same answer; numbers may differ in their last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), path
        for key in one.keys() - NOT_COMPARED:
            check_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), path
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            check_same(left, right, f"{path}[{i}]")
    elif path.endswith(".embedding") and isinstance(one, str) and isinstance(other, str):
        check_same(decoded(one), decoded(other), path)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=2e-3), path
    else:
        assert one == other, path


def test_batches_answer_what_live_requests_answer(site: Any) -> None:
    lines = {endpoint: as_lines(endpoint, bodies) for endpoint, bodies in BODIES.items()}
    batches = {endpoint: site.submit(endpoint, each).id for endpoint, each in lines.items()}
    with ThreadPoolExecutor(8) as pool:
        asked = {
            (endpoint, line["custom_id"]): pool.submit(ask, site, endpoint, line["body"])
            for endpoint, each in lines.items()
            for line in each
        }
        live = {key: future.result() for key, future in asked.items()}
    for endpoint, batch_id in batches.items():
        batch = site.wait_for_end(batch_id)
        assert batch.status == "completed"
        assert site.results(batch.error_file_id) == []
        results = site.results(batch.output_file_id)
        assert [each["custom_id"] for each in results] == [
            line["custom_id"] for line in lines[endpoint]
        ]
        for result in results:
            body = result["response"]["body"]
            answer = live[endpoint, result["custom_id"]]
            check_same(body, answer, f"{endpoint} {result['custom_id']}")


def test_what_cannot_be_done_is_the_error_of_its_line(site: Any) -> None:
    hello = {"messages": say("Hello."), "max_tokens": 2}
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}
    described = {"name": "s", "schema": schema, "strict": True}
    picture = {"role": "user", "content": [{"type": "image_url"}]}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        (
            "response_format.json_schema.schema",
            "invalid_value",
            {"response_format": {"type": "json_schema", "json_schema": described}},
        ),
        ("min_p", "unsupported_parameter", {"min_p": 0.1}),
        ("tempreature", "unsupported_parameter", {"tempreature": 0.1}),
        ("tools[0].type", "unsupported_parameter", {"tools": [{"type": "custom"}]}),
        ("messages[0].content[0].type", "unsupported_parameter", {"messages": [picture]}),
    ]
    lines = as_lines(CHAT, [hello, *({**hello, **fields} for _, _, fields in wrong)])
    batch = site.wait_for_end(site.submit(CHAT, lines).id)
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 1, "failed": 5}
    assert [each["custom_id"] for each in site.results(batch.output_file_id)] == ["request-0"]
    failed = site.results(batch.error_file_id)
    assert [each["custom_id"] for each in failed] == [line["custom_id"] for line in lines[1:]]
    for line, result, (param, code, _) in zip(lines[1:], failed, wrong, strict=True):
        response = result["response"]
        error = response["body"]["error"]
        assert (response["status_code"], error["param"], error["code"]) == (400, param, code)
        # Asked live, it is the same error.
        url = f"http://127.0.0.1:{site.port}{CHAT}"
        reply = httpx.post(url, json=line["body"], timeout=60)
        assert (reply.status_code, reply.json()) == (400, response["body"])


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, RESPONSES])
def test_a_file_with_a_line_that_streams_is_not_valid(site: Any, endpoint: str) -> None:
    body = BODIES[endpoint][0]
    batch = site.submit(endpoint, as_lines(endpoint, [body, {**body, "stream": True}]))
    batch = site.wait_for_end(batch.id)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert (error.line, error.code, error.param) == (2, "streaming_unsupported", "body.stream")


def test_a_live_request_does_not_wait_for_a_batch(site: Any, brake: Brake) -> None:
    num_lines, num_tokens = 300, 64
    body = {"messages": say("Tell me a story."), "max_tokens": num_tokens, "ignore_eos": True}
    brake.allow(0)
    batch = site.submit(CHAT, as_lines(CHAT, [body] * num_lines))
    begun = brake.wait(num_unfinished=num_lines)
    # Some of the batch has been begun, and some waits, when the request comes.
    brake.allow(begun.num_done + 10)
    assert brake.wait().num_unfinished == num_lines
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, site, CHAT, {"model": MODEL, **body})
        brake.wait(num_unfinished=num_lines + 1)
        # So many steps that it can be answered when it follows those that have begun.
        brake.allow(begun.num_done + 2 * num_tokens + 20)
        assert asked.result()["usage"]["completion_tokens"] == num_tokens
    assert brake.wait().num_unfinished >= num_lines - 2 * STEP_TOKENS
    assert site.client.batches.retrieve(batch.id).status == "in_progress"
    site.client.batches.cancel(batch.id)
    assert site.wait_for_end(batch.id).status == "cancelled"


def test_an_engine_that_dies_ends_its_streams(
    site: Any, client: openai.OpenAI, brake: Brake
) -> None:
    brake.allow(0)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            client.chat.completions.create,
            model=MODEL,
            messages=say("Tell me a story."),
            max_tokens=2000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        brake.allow(brake.wait().num_done + 20)
        stream = asked.result()
    with stream:
        while not (chunk := next(stream)).choices[0].delta.content:
            pass
        assert chunk.choices[0].finish_reason is None
        brake.wait()
        site.kill_engine()
        brake.release()
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)
    # The next one is answered when the engine is there again. Until then it is 503, and the client
    # asks again after 5 seconds, as it is told.
    patient = client.with_options(max_retries=40)
    answer = patient.chat.completions.create(model=MODEL, messages=say("Hello."), max_tokens=4)
    assert answer.choices[0].message.content is not None
