"""The input items of `/v1/responses` as messages of a conversation."""

from __future__ import annotations

from typing import Any

from trunkline.engine.requests.checks import (
    JsonObject,
    as_array,
    as_filled_string,
    as_object,
    as_string,
    one_of,
    required,
)
from trunkline.engine.requests.errors import invalid_type, invalid_value, unsupported_parameter
from trunkline.engine.requests.messages import arguments_of, text_of

_ROLES = ("user", "assistant", "system", "developer")

# A content part's type -> its field with the text.
_INPUT_PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}


def messages_of(items: object, instructions: str | None) -> list[JsonObject]:
    """The conversation that `input` and `instructions` make up.

    Calls that follow an assistant's message, or each other, belong to one message. Instructions
    come first; when the input begins with such a message too, they are joined.

    Raises:
        RequestError: an item is malformed or of a kind that is not supported; its `param` says
            where.
    """
    messages: list[JsonObject] = []
    if isinstance(items, str):
        messages.append({"role": "user", "content": as_filled_string(items, "input")})
    elif isinstance(items, list):
        for i, item in enumerate(items):
            _add(messages, as_object(item, f"input[{i}]"), f"input[{i}]")
    else:
        raise invalid_type("input", "a string or an array", items)
    if not messages:
        raise invalid_value("input", "expected at least one message or call")
    if instructions:
        if messages[0]["role"] in {"system", "developer"}:
            joined = f"{instructions}\n\n{messages[0]['content']}"
            messages[0] = {"role": messages[0]["role"], "content": joined}
        else:
            messages.insert(0, {"role": "system", "content": instructions})
    return messages


def _add(messages: list[JsonObject], item: JsonObject, path: str) -> None:
    kind = as_string(item.get("type", "message"), f"{path}.type")
    if kind == "message":
        role = one_of(required(item, "role", path), f"{path}.role", _ROLES)
        content = text_of(required(item, "content", path), f"{path}.content", _INPUT_PARTS)
        messages.append({"role": role, "content": content})
    elif kind == "function_call":
        call = _call(item, path)
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        call_id = as_string(required(item, "call_id", path), f"{path}.call_id")
        output = text_of(required(item, "output", path), f"{path}.output", _INPUT_PARTS)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
    elif kind == "reasoning":
        # What a model thought in earlier turns is not shown to it again.
        for name in ("summary", "content"):
            if item.get(name) is not None:
                as_array(item[name], f"{path}.{name}")
    else:
        raise unsupported_parameter(
            f"{path}.type",
            f"Items of the type '{kind}' cannot be read; use 'message', 'function_call', "
            "'function_call_output' and 'reasoning'.",
        )


def _call(item: JsonObject, path: str) -> dict[str, Any]:
    name = as_string(required(item, "name", path), f"{path}.name")
    arguments = as_string(required(item, "arguments", path), f"{path}.arguments")
    arguments_of(arguments, f"{path}.arguments")
    return {
        "id": as_string(required(item, "call_id", path), f"{path}.call_id"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
