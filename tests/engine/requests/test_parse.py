"""What holds for the bodies of all endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.parse import REQUEST_TYPES, parse_request
from trunkline.store.endpoints import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    STREAMING_ENDPOINTS,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}

Refuse = Callable[[str, Any], tuple[str, str | None, str | None]]


def test_every_endpoint_has_its_type() -> None:
    assert tuple(REQUEST_TYPES) == ENDPOINTS
    streaming = {name for name, kind in REQUEST_TYPES.items() if "stream" in kind.model_fields}
    assert streaming == STREAMING_ENDPOINTS


@pytest.mark.parametrize(
    ("change", "message", "param", "code"),
    [
        (
            {"messages": "x"},
            "Invalid type for 'messages': expected an array, but got a string instead.",
            "messages",
            "invalid_type",
        ),
        (
            {"messages": [1]},
            "Invalid type for 'messages[0]': expected an object, but got an integer instead.",
            "messages[0]",
            "invalid_type",
        ),
        (
            {"temperature": "hot"},
            "Invalid type for 'temperature': expected a number, but got a string instead.",
            "temperature",
            "invalid_type",
        ),
        (
            {"temperature": 3},
            "Invalid value for 'temperature': Input should be less than or equal to 2, got 3.",
            "temperature",
            "invalid_value",
        ),
        (
            {"repetition_penalty": float("inf")},
            "Invalid value for 'repetition_penalty': it holds a number that JSON does not have.",
            "repetition_penalty",
            "invalid_value",
        ),
        (
            {"max_tokens": 1.5},
            "Invalid type for 'max_tokens': expected an integer, but got a number instead.",
            "max_tokens",
            "invalid_type",
        ),
        (
            {"seed": True},
            "Invalid type for 'seed': expected an integer, but got a boolean instead.",
            "seed",
            "invalid_type",
        ),
        (
            {"stop": ["a", 5]},
            "Invalid type for 'stop[1]': expected a string, but got an integer instead.",
            "stop[1]",
            "invalid_type",
        ),
        (
            {"metadata": {"a": 1e999}},
            "Invalid value for 'metadata': it holds a number that JSON does not have.",
            "metadata",
            "invalid_value",
        ),
        (
            {"logit_bias": {"5": 101}},
            "Invalid value for 'logit_bias.5': Input should be less than or equal to 100, got 101.",
            "logit_bias.5",
            "invalid_value",
        ),
        (
            {"model": ...},
            "Missing required parameter: 'model'.",
            "model",
            "missing_required_parameter",
        ),
        (
            {"model": None},
            "Missing required parameter: 'model'.",
            "model",
            "missing_required_parameter",
        ),
    ],
)
def test_a_wrong_field_is_named(
    refusal: Refuse, change: dict[str, Any], message: str, param: str | None, code: str
) -> None:
    body = {key: value for key, value in {**CHAT, **change}.items() if value is not ...}
    assert refusal(CHAT_COMPLETIONS, body) == (message, param, code)


def test_a_field_that_nobody_knows_is_named(refusal: Refuse) -> None:
    assert refusal(CHAT_COMPLETIONS, {**CHAT, "max_token": 5}) == (
        "The parameter 'max_token' is not supported. This endpoint has no such parameter.",
        "max_token",
        "unsupported_parameter",
    )
    # The name of what is read from other fields is none of the body's.
    assert refusal(CHAT_COMPLETIONS, {**CHAT, "tool_use": {}})[1] == "tool_use"
    assert refusal(EMBEDDINGS, {"model": "m", "input": "x", "prompts": ["x"]})[1] == "prompts"


def test_a_refused_field_says_what_to_do_instead(refusal: Refuse) -> None:
    body = {"model": "m", "prompt": "x", "suffix": "y"}
    assert refusal(COMPLETIONS, body) == (
        "The parameter 'suffix' is not supported. Text is generated after the prompt only.",
        "suffix",
        "unsupported_parameter",
    )


def test_fields_that_ask_for_nothing_change_nothing() -> None:
    nothing = {
        "store": True,
        "user": "u",
        "tools": [],
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "functions": [],
        "function_call": "auto",
        "min_p": 0.0,
        "stream": False,
        "stream_options": None,
        "temperature": None,
        "audio": None,
        "verbosity": "medium",
        "tool_choice": "none",
        "x-new": None,
        "min_tokens": None,
    }
    assert parse_request(CHAT_COMPLETIONS, {**CHAT, **nothing}) == parse_request(
        CHAT_COMPLETIONS, CHAT
    )


def test_one_is_not_true(refusal: Refuse) -> None:
    _, param, code = refusal(CHAT_COMPLETIONS, {**CHAT, "skip_special_tokens": 1})
    assert (param, code) == ("skip_special_tokens", "unsupported_parameter")


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_a_body_that_is_no_object(refusal: Refuse, body: Any) -> None:
    assert refusal(CHAT_COMPLETIONS, body)[0] == "The request body must be a JSON object."


def test_an_endpoint_that_is_not_served(refusal: Refuse) -> None:
    message, param, _ = refusal("/v1/moderations", {})
    assert "'/v1/moderations' is not supported" in message
    assert param == "url"


def test_text_that_cannot_be_written_is_refused(refusal: Refuse) -> None:
    for change, param in (
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages"),
        ({"stop": "\udfff"}, "stop"),
        ({"user": "\udfff"}, "user"),
    ):
        message, named, _ = refusal(CHAT_COMPLETIONS, {**CHAT, **change})
        assert message == f"Invalid value for '{param}': it holds half of a surrogate pair."
        assert named == param
    message, param, _ = refusal(CHAT_COMPLETIONS, {**CHAT, "\ud800": 1})
    assert (message.encode(), param) == (
        b"The parameter '\\ud800' is not supported. This endpoint has no such parameter.",
        "\\ud800",
    )


def test_values_that_are_too_deep_or_long_to_read(refusal: Refuse) -> None:
    nested: Any = 1
    for _ in range(5000):
        nested = [nested]
    for name in ("metadata", "reasoning_effort", "response_format", "tools", "messages"):
        message, param, _ = refusal(CHAT_COMPLETIONS, {**CHAT, name: nested})
        assert message == f"Invalid value for '{name}': it is nested too deeply."
        assert param == name
    message, _, _ = refusal(CHAT_COMPLETIONS, {**CHAT, "reasoning_effort": "x" * 10_000})
    assert len(message) < 300


def test_usage_at_the_end_of_a_stream(refusal: Refuse) -> None:
    def usage(**fields: Any) -> bool:
        request = parse_request(CHAT_COMPLETIONS, {**CHAT, "stream": True, **fields})
        assert isinstance(request, ChatCompletionRequest)
        return request.include_usage

    assert not usage()
    assert not usage(stream_options={})
    assert usage(stream_options={"include_usage": True, "include_obfuscation": False})
    for options, param in (
        ({"include_usage": 1}, "stream_options.include_usage"),
        ({"continuous_usage_stats": True}, "stream_options.continuous_usage_stats"),
        ({"new": True}, "stream_options.new"),
        ([], "stream_options"),
    ):
        body = {**CHAT, "stream": True, "stream_options": options}
        assert refusal(CHAT_COMPLETIONS, body)[1] == param
    body = {**CHAT, "stream_options": {"include_usage": True}}
    assert "only allowed when 'stream' is enabled" in refusal(CHAT_COMPLETIONS, body)[0]


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, 1024),
        ({"stop": ["x"] * 129}, 128),
        ({"stop_token_ids": [1] * 129}, 128),
    ],
)
def test_more_than_may_be_looked_at_for_each_token(
    refusal: Refuse, fields: dict[str, Any], most: int
) -> None:
    message, param, code = refusal(CHAT_COMPLETIONS, {**CHAT, **fields})
    assert (param, code) == (next(iter(fields)), "invalid_value")
    assert str(most) in message
