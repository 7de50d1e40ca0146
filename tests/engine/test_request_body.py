"""What a line's body may hold, and the words for what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.engine.request_body import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    ChatCompletionRequest,
    CompletionRequest,
    RequestError,
    parse_request,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def refusal(endpoint: str, body: Any) -> tuple[str, str | None, str | None]:
    with pytest.raises(RequestError) as caught:
        parse_request(endpoint, body)
    error = caught.value
    assert error.as_body()["error"]["type"] == "invalid_request_error"
    return error.message, error.param, error.code


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
            {"top_logprobs": 3},
            "'top_logprobs' is given, so 'logprobs' must be true.",
            None,
            "invalid_value",
        ),
        (
            {"tools": [{}]},
            "The parameter 'tools' is not supported.",
            "tools",
            "unsupported_parameter",
        ),
        (
            {"model": ...},
            "Missing required parameter: 'model'.",
            "model",
            "missing_required_parameter",
        ),
    ],
)
def test_a_wrong_field_is_named(
    change: dict[str, Any], message: str, param: str | None, code: str
) -> None:
    body = {key: value for key, value in {**CHAT, **change}.items() if value is not ...}
    assert refusal(CHAT_COMPLETIONS, body) == (message, param, code)


def test_unknown_fields_and_fields_that_ask_for_nothing_are_ignored() -> None:
    extra = {"store": True, "x-new": 1, "tools": [], "response_format": {"type": "text"}}
    request = parse_request(CHAT_COMPLETIONS, {**CHAT, **extra, "stream": False})
    assert isinstance(request, ChatCompletionRequest)
    assert not hasattr(request, "store")


def test_limits_on_output() -> None:
    chat = parse_request(CHAT_COMPLETIONS, {**CHAT, "max_tokens": 5, "max_completion_tokens": 7})
    assert chat.output_limit == 7
    assert parse_request(CHAT_COMPLETIONS, CHAT).output_limit is None
    text = parse_request(COMPLETIONS, {"model": "m", "prompt": "x"})
    assert text.output_limit == 16


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_every_form_of_a_prompt(prompt: Any, parsed: Any) -> None:
    request = parse_request(COMPLETIONS, {"model": "m", "prompt": prompt})
    assert isinstance(request, CompletionRequest)
    assert request.prompt == parsed


@pytest.mark.parametrize("prompt", ["", [], [[]], 5, None, [1.5], ["a", 1], [[1, -1]], [True]])
def test_a_prompt_of_no_form(prompt: Any) -> None:
    message, param, _ = refusal(COMPLETIONS, {"model": "m", "prompt": prompt})
    assert message.startswith("'prompt' must be a string, an array of strings")
    assert param == "prompt"


def test_an_endpoint_that_is_not_served() -> None:
    message, param, _ = refusal("/v1/embeddings", {})
    assert "'/v1/embeddings' is not supported" in message
    assert param == "url"
