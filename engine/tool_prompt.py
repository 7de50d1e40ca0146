"""Tools for models whose chat template shows none that can be read.

The format is that of Hermes, in which many models have been trained: functions in a system
message, calls as JSON between tags, results as messages of the user.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

JsonObject = dict[str, Any]

_SYSTEM_PROMPT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_tools_as_text(
    messages: Iterable[JsonObject], tools: Sequence[JsonObject]
) -> list[JsonObject]:
    """The conversation with `tools`, calls and results written out.

    Args:
        messages: `content` is text, the arguments of calls are objects.
        tools: as chat completions have them.
    """
    written = _with_results_joined(map(_with_calls_as_text, messages))
    if not tools:
        return written
    prompt = _SYSTEM_PROMPT.format(signatures="\n".join(map(json_of, tools)))
    if written[0]["role"] == "system":
        joined = f"{written[0]['content']}\n\n{prompt}"
        return [{**written[0], "content": joined}, *written[1:]]
    return [{"role": "system", "content": prompt}, *written]


def _with_calls_as_text(message: JsonObject) -> JsonObject:
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [f"<tool_call>\n{json_of(_call(call['function']))}\n</tool_call>" for call in calls]
    if message["content"]:
        texts.insert(0, message["content"])
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**kept, "content": "\n".join(texts)}


def _call(function: JsonObject) -> JsonObject:
    return {"name": function["name"], "arguments": function["arguments"]}


def _with_results_joined(messages: Iterable[JsonObject]) -> list[JsonObject]:
    """Results as messages of the user, one for all those that follow each other."""
    joined: list[JsonObject] = []
    was_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if not is_result:
            joined.append(message)
        else:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if was_result:
                joined[-1]["content"] += f"\n{text}"
            else:
                joined.append({"role": "user", "content": text})
        was_result = is_result
    return joined


def json_of(value: JsonObject) -> str:
    """`value` as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)
