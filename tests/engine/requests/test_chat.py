"""What the body of a chat completion may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.parse import parse_request
from trunkline.store.endpoints import CHAT_COMPLETIONS

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Ho"}

Refuse = Callable[[str, Any], tuple[str, str | None, str | None]]


def parsed(**fields: Any) -> ChatCompletionRequest:
    request = parse_request(CHAT_COMPLETIONS, {"model": "m", "messages": [USER], **fields})
    assert isinstance(request, ChatCompletionRequest)
    return request


def test_limits_on_output(refusal: Refuse) -> None:
    assert parsed(max_tokens=5, max_completion_tokens=7).output_limit == 7
    assert parsed(max_tokens=5).output_limit == 5
    assert parsed().output_limit is None
    body = {"model": "m", "messages": [USER], "max_completion_tokens": 5, "min_tokens": 6}
    message, param, _ = refusal(CHAT_COMPLETIONS, body)
    assert message == "'min_tokens' is 6, but at most 5 tokens may be generated."
    assert param == "min_tokens"


def test_logprobs(refusal: Refuse) -> None:
    assert parsed().num_top_logprobs is None
    assert parsed(logprobs=True).num_top_logprobs == 0
    assert parsed(logprobs=True, top_logprobs=3).num_top_logprobs == 3
    assert parsed(logprobs=False).num_top_logprobs is None
    body = {"model": "m", "messages": [USER], "top_logprobs": 3}
    assert refusal(CHAT_COMPLETIONS, body) == (
        "'top_logprobs' is given, so 'logprobs' must be true.",
        "top_logprobs",
        "invalid_value",
    )


def test_stop_is_one_string_or_any_number() -> None:
    assert parsed(stop="a").stop == ["a"]
    assert parsed(stop=list("abcdefg")).stop == list("abcdefg")


def test_reasoning(refusal: Refuse) -> None:
    assert parsed().reasoning_effort is None
    assert parsed(reasoning_effort="minimal").reasoning_effort == "minimal"
    assert parsed().include_reasoning
    assert not parsed(include_reasoning=False).include_reasoning
    body = {"model": "m", "messages": [USER], "reasoning_effort": "huge"}
    assert refusal(CHAT_COMPLETIONS, body)[1:] == ("reasoning_effort", "invalid_value")


def test_the_last_message_may_begin_the_answer(refusal: Refuse) -> None:
    assert not parsed(messages=[USER, ASSISTANT]).continue_final_message
    assert parsed(messages=[USER, {**ASSISTANT, "prefix": True}]).continue_final_message
    assert parsed(messages=[USER, ASSISTANT], continue_final_message=True).continue_final_message
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for fields, param in (
        ({"messages": [USER], "continue_final_message": True}, "messages[0].role"),
        ({"messages": [{**USER, "prefix": True}]}, "messages[0].prefix"),
        ({"messages": [{**ASSISTANT, "prefix": True}, USER]}, "messages[0].prefix"),
        ({"messages": [{**ASSISTANT, "prefix": 1}]}, "messages[0].prefix"),
        (
            {"messages": [USER, {**ASSISTANT, "prefix": True, "tool_calls": [call]}]},
            "messages[1].tool_calls",
        ),
        ({"messages": [ASSISTANT], "continue_final_message": 1}, "continue_final_message"),
    ):
        assert refusal(CHAT_COMPLETIONS, {"model": "m", **fields})[1] == param


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools", "continue_final_message"])
def test_template_kwargs_are_the_templates_own(refusal: Refuse, name: str) -> None:
    assert parsed(chat_template_kwargs={"enable_thinking": False}).chat_template_kwargs == {
        "enable_thinking": False
    }
    body = {"model": "m", "messages": [USER], "chat_template_kwargs": {name: "x"}}
    _, param, code = refusal(CHAT_COMPLETIONS, body)
    assert (param, code) == (f"chat_template_kwargs.{name}", "unsupported_parameter")
