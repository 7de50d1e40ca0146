"""What the body of a response may hold, and the chat completion that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.parse import parse_request
from trunkline.engine.requests.responses import ResponsesRequest
from trunkline.store.endpoints import CHAT_COMPLETIONS, RESPONSES

USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "5"}
CHAT_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

Refuse = Callable[[str, Any], tuple[str, str | None, str | None]]


def parsed(**fields: Any) -> ResponsesRequest:
    request = parse_request(RESPONSES, {"model": "m", "input": "Hi", **fields})
    assert isinstance(request, ResponsesRequest)
    return request


def chat(**fields: Any) -> ChatCompletionRequest:
    request = parse_request(CHAT_COMPLETIONS, {"model": "m", "messages": [USER], **fields})
    assert isinstance(request, ChatCompletionRequest)
    return request


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("Hi", [USER]),
        ([USER], [USER]),
        (
            [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "Hi"}],
                }
            ],
            [USER],
        ),
        (
            [
                USER,
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "Ho", "annotations": []}],
                },
                USER,
            ],
            [USER, {"role": "assistant", "content": "Ho"}, USER],
        ),
        (
            [USER, {"type": "reasoning", "id": "rs_1", "summary": []}, CALL, OUTPUT],
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "5"},
            ],
        ),
        (
            [
                *(USER, {"role": "assistant", "content": "Let me see."}, CALL),
                *({**CALL, "call_id": "d"}, OUTPUT, {**OUTPUT, "call_id": "d"}, CALL),
            ],
            [
                USER,
                {
                    "role": "assistant",
                    "content": "Let me see.",
                    "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "d"}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "5"},
                {"role": "tool", "tool_call_id": "d", "content": "5"},
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
            ],
        ),
        (
            [CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "5"}]}],
            [
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "5"},
            ],
        ),
    ],
)
def test_items_become_messages(given: Any, messages: list[dict[str, Any]]) -> None:
    assert parsed(input=given).as_chat().messages == messages


def test_instructions_come_first() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert parsed(instructions="Be brief.").messages == [system, USER]
    assert parsed(instructions="").messages == [USER]
    developer = {"role": "developer", "content": "Be kind."}
    assert parsed(instructions="Be brief.", input=[developer, USER]).messages == [
        {"role": "developer", "content": "Be brief.\n\nBe kind."},
        USER,
    ]


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (None, "input", "missing_required_parameter"),
        (5, "input", "invalid_type"),
        ("", "input", "invalid_value"),
        ([], "input", "invalid_value"),
        ([{"type": "reasoning"}], "input", "invalid_value"),
        (["Hi"], "input[0]", "invalid_type"),
        ([USER, {"content": "Hi"}], "input[1].role", "missing_required_parameter"),
        ([{"role": "tool", "content": "Hi"}], "input[0].role", "invalid_value"),
        ([{"role": "user"}], "input[0].content", "missing_required_parameter"),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            "input[0].content[0].type",
            "unsupported_parameter",
        ),
        ([{"type": "item_reference", "id": "x"}], "input[0].type", "unsupported_parameter"),
        ([{**CALL, "name": None}], "input[0].name", "missing_required_parameter"),
        ([{**CALL, "call_id": None}], "input[0].call_id", "missing_required_parameter"),
        ([{**CALL, "arguments": "x"}], "input[0].arguments", "invalid_value"),
        ([{**OUTPUT, "output": 5}], "input[0].output", "invalid_type"),
        ([{**OUTPUT, "call_id": 5}], "input[0].call_id", "invalid_type"),
        ([USER, {"type": "reasoning", "summary": "x"}], "input[1].summary", "invalid_type"),
    ],
)
def test_a_bad_item_is_named(refusal: Refuse, given: Any, param: str, code: str) -> None:
    assert refusal(RESPONSES, {"model": "m", "input": given})[1:] == (param, code)


def test_the_chat_completion_it_stands_for() -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    schema = {"type": "object"}
    response = parsed(
        max_output_tokens=5,
        temperature=0.5,
        top_p=0.5,
        seed=7,
        stream=True,
        tools=[{"type": "function", **function, "strict": None, "description": None}],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto", "context": "auto", "mode": "standard"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
        include=["message.output_text.logprobs", "file_search_call.results"],
        top_logprobs=2,
    )
    completion = chat(
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.5,
        seed=7,
        stream=True,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        parallel_tool_calls=False,
        reasoning_effort="low",
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        logprobs=True,
        top_logprobs=2,
    )
    chat_constraint = completion.constraint
    assert chat_constraint is not None
    assert response.constraint is not None
    assert response.constraint.param == "text.format.schema"
    assert (response.constraint.kind, response.constraint.value) == (
        chat_constraint.kind,
        chat_constraint.value,
    )
    same = completion.model_copy(update={"constraint": response.constraint})
    assert response.as_chat() == same
    assert response.output_limit == 5


@pytest.mark.parametrize(
    ("fields", "num_top"),
    [
        ({}, None),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"top_logprobs": 3}, 3),
        ({"include": []}, None),
    ],
)
def test_logprobs(fields: dict[str, Any], num_top: int | None) -> None:
    request = parsed(**fields)
    assert request.num_top_logprobs == num_top
    assert request.as_chat().num_top_logprobs == num_top


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"background": True}, "background", "unsupported_parameter"),
        ({"previous_response_id": "x"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": {"id": "x"}}, "conversation", "unsupported_parameter"),
        ({"messages": [USER]}, "messages", "unsupported_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice", "invalid_value"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]", "unsupported_parameter"),
        ({"include": ["x"]}, "include[0]", "invalid_value"),
        ({"instructions": ["x"]}, "instructions", "invalid_type"),
        ({"reasoning": "low"}, "reasoning", "invalid_type"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context", "unsupported_parameter"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "unsupported_parameter"),
        ({"reasoning": {"new": 1}}, "reasoning.new", "unsupported_parameter"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {}}}},
            "text.format.name",
            "missing_required_parameter",
        ),
        (
            {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "invalid_value",
        ),
        (
            {"prompt_cache_options": {"prewarm": True}},
            "prompt_cache_options.prewarm",
            "unsupported_parameter",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 5, "min_tokens": 6}, "min_tokens", "invalid_value"),
    ],
)
def test_a_wrong_field_is_named(
    refusal: Refuse, fields: dict[str, Any], param: str, code: str
) -> None:
    assert refusal(RESPONSES, {"model": "m", "input": "Hi", **fields})[1:] == (param, code)
