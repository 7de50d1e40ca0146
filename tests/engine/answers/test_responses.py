"""Responses, checked against the types of OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.responses import Response

from trunkline.engine.answers.format import AnswerFormat, ToolFormat
from trunkline.engine.answers.reasoning import THINK

RESPONSES = "/v1/responses"
END = "<|im_end|>"
HERMES = AnswerFormat(ToolFormat.HERMES, frozenset(["add", "now"]))
ALL = AnswerFormat(
    ToolFormat.HERMES, frozenset(["add", "now"]), think_tags=THINK, starts_thinking=True
)
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True},
    {"type": "function", "name": "now"},
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def valid(body: dict[str, Any]) -> Response:
    return Response.model_validate_json(json.dumps(body), strict=True)


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


def test_a_message(write: Callable[..., Any]) -> None:
    body = write(RESPONSES, {"input": "Hi"}, f"Hello 🦊{END}").body()
    found = valid(body)
    assert (found.object, found.status, found.model) == ("response", "completed", "m")
    assert found.created_at == found.completed_at == 1_700_000_000
    assert found.output_text == "Hello 🦊"
    assert found.error is None
    assert found.incomplete_details is None
    assert [without_ids(item) for item in body["output"]] == [
        {
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "Hello 🦊", "annotations": [], "logprobs": []}
            ],
        }
    ]
    assert body["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 11,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 18,
    }


def test_what_was_asked_for_is_repeated(write: Callable[..., Any]) -> None:
    given = {
        "input": "Hi",
        "instructions": "Be brief.",
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.25,
        "tool_choice": {"type": "function", "name": "add"},
        "user": "somebody",
        "safety_identifier": "anybody",
        "prompt_cache_key": "k",
        "truncation": "disabled",
    }
    body = write(RESPONSES, {**given, "tools": TOOLS, "top_logprobs": None}, END).body()
    valid(body)
    del given["input"]
    assert {name: body[name] for name in given} == given
    assert body["tools"] == [
        {**TOOLS[0], "description": None},
        {**TOOLS[1], "description": None, "parameters": None, "strict": None},
    ]


def test_what_was_not_asked_for_has_its_default(write: Callable[..., Any]) -> None:
    found = valid(write(RESPONSES, {"input": "Hi", "temperature": None}, END).body())
    assert (found.temperature, found.top_p, found.tool_choice) == (1.0, 1.0, "auto")
    assert (found.tools, found.metadata, found.parallel_tool_calls) == ([], {}, True)
    assert (found.truncation, found.instructions, found.background) == ("disabled", None, False)
    assert found.text is not None
    assert found.text.format is not None
    assert found.text.format.type == "text"


def test_structured_output_is_repeated(write: Callable[..., Any]) -> None:
    given = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    request = {"input": "Hi", "text": {"format": given, "verbosity": None}}
    body = write(RESPONSES, request, f"{{}}{END}").body()
    assert valid(body).output_text == "{}"
    assert body["text"] == {"format": given}


def test_an_answer_that_was_cut_off(write: Callable[..., Any]) -> None:
    found = valid(write(RESPONSES, {"input": "Hi", "max_output_tokens": 3}, "Hel").body())
    assert found.status == "incomplete"
    assert found.completed_at is None
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    (item,) = found.output
    assert item.type == "message"
    assert item.status == "incomplete"
    assert found.output_text == "Hel"


def test_an_empty_answer_is_an_empty_message(write: Callable[..., Any]) -> None:
    found = valid(write(RESPONSES, {"input": "Hi"}, END).body())
    assert [item.type for item in found.output] == ["message"]
    assert found.output_text == ""


def test_reasoning_words_and_calls(write: Callable[..., Any]) -> None:
    text = f"Hm.\n</think>\n\nLet me see.\n{CALL}\n{OTHER_CALL}{END}"
    written = write(RESPONSES, {"input": "Hi", "tools": TOOLS}, text, answer_format=ALL)
    body = written.body()
    found = valid(body)
    assert found.output_text == "Let me see."
    assert found.status == "completed"
    assert found.usage is not None
    assert found.usage.output_tokens_details.reasoning_tokens == len("Hm.\n</think>")
    items = body["output"]
    assert [without_ids(item) for item in items if item["type"] != "message"] == [
        {
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "function_call",
            "status": "completed",
            "name": "add",
            "arguments": '{"a": 1}',
        },
        {"type": "function_call", "status": "completed", "name": "now", "arguments": "{}"},
    ]
    assert len({item["id"] for item in items}) == 4
    assert [item["id"].split("_")[0] for item in items] == ["rs", "msg", "fc", "fc"]
    assert len({item["call_id"] for item in items[2:]}) == 2
    assert written.body() == body


def test_a_call_that_was_cut_off(write: Callable[..., Any]) -> None:
    text = f'{CALL}\n<tool_call>\n{{"name": "add", "arguments": {{"a"'
    written = write(RESPONSES, {"input": "Hi", "tools": TOOLS}, text, answer_format=HERMES)
    found = valid(written.body())
    calls = [item for item in found.output if item.type == "function_call"]
    assert [call.status for call in calls] == ["completed", "incomplete"]
    assert [call.arguments for call in calls] == ['{"a": 1}', '{"a"']


def test_a_thought_that_was_cut_off(write: Callable[..., Any]) -> None:
    found = valid(write(RESPONSES, {"input": "Hi"}, "Hm, hm", answer_format=ALL).body())
    (item,) = found.output
    assert item.type == "reasoning"
    assert (item.status, found.status) == ("incomplete", "incomplete")


@pytest.mark.parametrize(
    "wanted",
    [{"top_logprobs": 1}, {"top_logprobs": 1, "include": ["message.output_text.logprobs"]}],
)
def test_log_probabilities(write: Callable[..., Any], wanted: dict[str, Any]) -> None:
    request = {"input": "Hi", "tools": TOOLS, **wanted}
    text = f"Hm</think>🦊 {CALL}{END}"
    found = valid(write(RESPONSES, request, text, answer_format=ALL, num_logprobs=1).body())
    (message,) = [item for item in found.output if item.type == "message"]
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert bytes(byte for token in part.logprobs for byte in token.bytes).decode() == "🦊"
    assert part.text == "🦊"
    assert part.logprobs[0].token == "\\xf0"
    assert [len(token.top_logprobs) for token in part.logprobs] == [1] * 4


def test_an_answer_without_its_form_is_an_error(write: Callable[..., Any]) -> None:
    request = {"input": "Hi", "tools": TOOLS, "tool_choice": "required"}
    written = write(RESPONSES, request, "x")
    written.request.sequences[0].failure = "too many states"
    outcome = written.outcome()
    assert outcome.status_code == 400
    assert json.loads(outcome.body)["error"]["param"] == "tools"
