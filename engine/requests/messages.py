"""Checks the messages of a conversation, as chat completions have them."""

from __future__ import annotations

import json
from typing import Any

from trunkline.engine.requests.checks import (
    JsonObject,
    as_array,
    as_object,
    as_string,
    check_writable,
    one_of,
    optional_bool,
    optional_string,
    required,
)
from trunkline.engine.requests.errors import (
    RequestError,
    invalid_type,
    invalid_value,
    unsupported_parameter,
)

ROLES = ("system", "developer", "user", "assistant", "tool")

# The field of a content part that holds its text.
_TEXT_PARTS = {"text": "text"}
_ANSWER_PARTS = {"text": "text", "refusal": "refusal"}


def check_messages(messages: list[JsonObject]) -> list[JsonObject]:
    """The messages, each of which has the fields that its role needs.

    Fields that are not known here go to the model's chat template, which may know them.

    Raises:
        RequestError: one is malformed or of a kind that is not supported; its `param` says where.
    """
    for i, message in enumerate(messages):
        _check(message, f"messages[{i}]")
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if optional_bool(message, "prefix", path) and i < len(messages) - 1:
            raise invalid_value(f"{path}.prefix", "only the last message may be continued")
    return messages


def text_of(content: object, path: str, parts: dict[str, str] | None = None) -> str:
    """The text of a message's content, a string or an array of parts, which become lines.

    Args:
        parts: a part's type -> its field with the text; None: parts of user messages.

    Raises:
        RequestError: it is neither, or a part is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid_type(path, "a string or an array", content)
    if not content:
        raise invalid_value(path, "expected at least one part, got []")
    allowed = _TEXT_PARTS if parts is None else parts
    texts = []
    for i, value in enumerate(content):
        at = f"{path}[{i}]"
        part = as_object(value, at)
        kind = as_string(required(part, "type", at), f"{at}.type")
        if kind not in allowed:
            raise unsupported_parameter(
                f"{at}.type", f"Parts of the type '{kind}' cannot be read; send text."
            )
        texts.append(as_string(required(part, allowed[kind], at), f"{at}.{allowed[kind]}"))
    return "\n".join(texts)


def arguments_of(text: str, path: str) -> JsonObject:
    """The arguments of an earlier call, from their JSON text; none at all when it is empty.

    Raises:
        RequestError: it is not the JSON text of an object.
    """
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise invalid_value(path, f"it is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise invalid_type(path, "the JSON text of an object", arguments)
    check_writable(arguments, path)  # JSON may spell what is no text
    return arguments


def answer_text(message: JsonObject, path: str) -> str:
    """What an assistant's message says: its content, or what it refused."""
    content = message.get("content")
    if content is not None:
        return text_of(content, f"{path}.content", _ANSWER_PARTS)
    return optional_string(message, "refusal", path) or ""


def _check(message: JsonObject, path: str) -> None:
    role = as_string(required(message, "role", path), f"{path}.role")
    if role == "function":
        raise unsupported_parameter(f"{path}.role", "Use the role 'tool' instead of 'function'.")
    one_of(role, f"{path}.role", ROLES)
    optional_string(message, "name", path)
    if role == "assistant":
        _check_answer(message, path)
        return
    text_of(required(message, "content", path), f"{path}.content")
    if role == "tool":
        as_string(required(message, "tool_call_id", path), f"{path}.tool_call_id")
    if optional_bool(message, "prefix", path):
        raise invalid_value(
            f"{path}.prefix", f"only an assistant's message may be continued, got role '{role}'"
        )


def _check_answer(message: JsonObject, path: str) -> None:
    for name, reason in (
        ("function_call", "Use 'tool_calls'."),
        ("audio", "Send text."),
    ):
        if message.get(name) is not None:
            raise unsupported_parameter(f"{path}.{name}", reason)
    answer_text(message, path)
    for name in ("reasoning", "reasoning_content"):
        optional_string(message, name, path)
    calls = message.get("tool_calls")
    for i, value in enumerate([] if calls is None else as_array(calls, f"{path}.tool_calls")):
        _check_call(value, f"{path}.tool_calls[{i}]")
    if not calls and message.get("content") is None and message.get("refusal") is None:
        raise RequestError(
            f"'{path}' needs 'content' or 'tool_calls'.",
            f"{path}.content",
            "missing_required_parameter",
        )


def _check_call(value: Any, path: str) -> None:
    call = as_object(value, path)
    kind = as_string(required(call, "type", path), f"{path}.type")
    if kind != "function":
        raise unsupported_parameter(
            f"{path}.type", f"Calls of the type '{kind}' cannot be read; use 'function'."
        )
    as_string(required(call, "id", path), f"{path}.id")
    function = as_object(required(call, "function", path), f"{path}.function")
    as_string(required(function, "name", f"{path}.function"), f"{path}.function.name")
    arguments = as_string(
        required(function, "arguments", f"{path}.function"), f"{path}.function.arguments"
    )
    arguments_of(arguments, f"{path}.function.arguments")
