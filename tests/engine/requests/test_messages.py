"""Which messages make a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.messages import check_messages

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "", "name": "Ann"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": "Ho"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "function_call": None},
        {"role": "assistant", "content": "Ho", "reasoning_content": "Hm", "tool_calls": []},
        {"role": "tool", "content": "5", "tool_call_id": "c"},
        {"role": "user", "content": "Hi", "known_to_the_template": {"a": 1}},
    ],
)
def test_good_messages(message: dict[str, Any]) -> None:
    assert check_messages([message]) == [message]


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"content": "Hi"}, "role", "missing_required_parameter"),
        ({"role": "king", "content": "Hi"}, "role", "invalid_value"),
        ({"role": 5, "content": "Hi"}, "role", "invalid_type"),
        ({"role": "function", "name": "f", "content": "5"}, "role", "unsupported_parameter"),
        ({"role": "user"}, "content", "missing_required_parameter"),
        ({"role": "user", "content": None}, "content", "missing_required_parameter"),
        ({"role": "user", "content": 5}, "content", "invalid_type"),
        ({"role": "user", "content": {}}, "content", "invalid_type"),
        ({"role": "user", "content": []}, "content", "invalid_value"),
        ({"role": "user", "content": ["Hi"]}, "content[0]", "invalid_type"),
        ({"role": "user", "content": [{}]}, "content[0].type", "missing_required_parameter"),
        (
            {"role": "user", "content": [{"type": "text"}]},
            "content[0].text",
            "missing_required_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": 5}]},
            "content[0].text",
            "invalid_type",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}],
            },
            "content[1].type",
            "unsupported_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "refusal", "refusal": "No."}]},
            "content[0].type",
            "unsupported_parameter",
        ),
        ({"role": "user", "content": "Hi", "name": 5}, "name", "invalid_type"),
        ({"role": "tool", "content": "5"}, "tool_call_id", "missing_required_parameter"),
        ({"role": "tool", "content": "5", "tool_call_id": 5}, "tool_call_id", "invalid_type"),
        ({"role": "tool", "tool_call_id": "c"}, "content", "missing_required_parameter"),
        ({"role": "assistant"}, "content", "missing_required_parameter"),
        ({"role": "assistant", "content": 5}, "content", "invalid_type"),
        (
            {"role": "assistant", "content": "a", "function_call": {"name": "f"}},
            "function_call",
            "unsupported_parameter",
        ),
        (
            {"role": "assistant", "content": "a", "audio": {"id": "a"}},
            "audio",
            "unsupported_parameter",
        ),
        ({"role": "assistant", "content": "a", "reasoning": 5}, "reasoning", "invalid_type"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls", "invalid_type"),
    ],
)
def test_a_bad_message_is_named(message: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_messages([USER, message])
    assert (caught.value.param, caught.value.code) == (f"messages[1].{param}", code)


@pytest.mark.parametrize(
    ("call", "param", "code"),
    [
        ("f", "", "invalid_type"),
        ({**CALL, "type": "custom"}, ".type", "unsupported_parameter"),
        ({**CALL, "id": None}, ".id", "missing_required_parameter"),
        ({**CALL, "function": "f"}, ".function", "invalid_type"),
        ({**CALL, "function": {"name": "f"}}, ".function.arguments", "missing_required_parameter"),
        ({**CALL, "function": {"arguments": "{}"}}, ".function.name", "missing_required_parameter"),
        (
            {**CALL, "function": {"name": "f", "arguments": {}}},
            ".function.arguments",
            "invalid_type",
        ),
        (
            {**CALL, "function": {"name": "f", "arguments": "{"}},
            ".function.arguments",
            "invalid_value",
        ),
        (
            {**CALL, "function": {"name": "f", "arguments": "[1]"}},
            ".function.arguments",
            "invalid_type",
        ),
        (  # escapes that spell half of a surrogate pair
            {**CALL, "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}},
            ".function.arguments",
            "invalid_value",
        ),
    ],
)
def test_a_bad_call_is_named(call: Any, param: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_messages([{"role": "assistant", "tool_calls": [CALL, call]}])
    assert (caught.value.param, caught.value.code) == (f"messages[0].tool_calls[1]{param}", code)
