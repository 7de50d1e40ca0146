"""Reads `tools`, `tool_choice` and `parallel_tool_calls`.

Chat completions nest a function (`{"type": "function", "function": {"name": ...}}`), responses
have it flat (`{"type": "function", "name": ...}`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from trunkline.engine.requests.checks import (
    JsonObject,
    as_array,
    as_bool,
    as_object,
    as_string,
    nothing_else,
    one_of,
    optional_bool,
    optional_string,
    required,
)
from trunkline.engine.requests.errors import (
    RequestError,
    invalid_type,
    invalid_value,
    listed,
    shown,
    unsupported_parameter,
)
from trunkline.engine.requests.tools import FunctionTool, ToolMode, ToolUse

TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")

# As many as OpenAI's API takes.
MAX_TOOLS = 128
NAME_PATTERN = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class ToolShape(Enum):
    """Where the fields of a function are."""

    NESTED = "nested"  # in `function`
    FLAT = "flat"  # beside `type`


def read_tool_use(body: Mapping[str, Any], shape: ToolShape) -> ToolUse | None:
    """What a body says about tools; None when it has none.

    Raises:
        RequestError: a tool is malformed or none that can be called, or the choice names none.
    """
    parallel = body.get("parallel_tool_calls")
    may_be_parallel = parallel is None or as_bool(parallel, "parallel_tool_calls")
    given = body.get("tools")
    tools = () if given is None else _tools(as_array(given, "tools"), shape)
    choice = body.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError(
                "'tool_choice' is only allowed when 'tools' are specified.",
                "tool_choice",
                "invalid_value",
            )
        return None
    mode, callable_tools = _choice("auto" if choice is None else choice, tools, shape)
    return ToolUse(tools, callable_tools, mode, may_be_parallel)


def _tools(given: list[Any], shape: ToolShape) -> tuple[FunctionTool, ...]:
    if len(given) > MAX_TOOLS:
        raise invalid_value("tools", f"expected at most {MAX_TOOLS} tools, got {len(given)}")
    tools: dict[str, FunctionTool] = {}
    for i, value in enumerate(given):
        path = f"tools[{i}]"
        tool = as_object(value, path)
        kind = as_string(required(tool, "type", path), f"{path}.type")
        if kind != "function":
            raise unsupported_parameter(
                f"{path}.type", f"Tools of the type '{kind}' cannot be run; use 'function'."
            )
        fields, at = tool, path
        if shape is ToolShape.NESTED:
            nothing_else(tool, path, ("type", "function"))
            at = f"{path}.function"
            fields = as_object(required(tool, "function", path), at)
        function = _function(fields, at)
        if function.name in tools:
            raise invalid_value(f"{at}.name", f"another tool is called '{function.name}' already")
        tools[function.name] = function
    return tuple(tools.values())


def _function(fields: JsonObject, path: str) -> FunctionTool:
    # Of the flat form: what would change how the tool is offered, unless it asks for nothing.
    if fields.get("allowed_callers") not in (None, ["direct"]):
        raise unsupported_parameter(f"{path}.allowed_callers", "Only ['direct'] is.")
    for name in ("defer_loading", "async"):
        if fields.get(name):
            raise unsupported_parameter(f"{path}.{name}")
    nothing_else(
        fields,
        path,
        (
            *("type", "name", "description", "parameters", "strict"),
            *("allowed_callers", "defer_loading", "async", "output_schema"),
        ),
    )
    name = as_string(required(fields, "name", path), f"{path}.name")
    if not NAME_PATTERN.fullmatch(name):
        raise invalid_value(
            f"{path}.name",
            f"expected 1 to 64 letters, digits, underscores and hyphens, got {shown(name)}",
        )
    description = optional_string(fields, "description", path)
    strict = optional_bool(fields, "strict", path) or False
    if fields.get("parameters") is None:
        return FunctionTool(name, description, strict=strict)
    at = f"{path}.parameters"
    parameters = as_object(fields["parameters"], at)
    check_parameters(parameters, name, at)
    return FunctionTool(name, description, _object_schema(parameters), strict)


def check_parameters(parameters: JsonObject, name: str, path: str) -> None:
    """Raise RequestError unless `parameters` can be the JSON schema of a function's arguments."""
    kind = parameters.get("type", "object")
    if kind != "object":
        raise RequestError(
            f"Invalid schema for function '{name}': schema must be a JSON Schema of "
            f"'type: \"object\"', got {shown(kind)}.",
            f"{path}.type",
            "invalid_function_parameters",
        )
    properties = parameters.get("properties", {})
    if not isinstance(properties, dict):
        raise invalid_type(f"{path}.properties", "an object", properties)
    for key, schema in properties.items():
        if not isinstance(schema, dict | bool):
            raise invalid_type(f"{path}.properties.{key}", "an object", schema)
    needed = parameters.get("required", [])
    for i, key in enumerate(as_array(needed, f"{path}.required")):
        as_string(key, f"{path}.required[{i}]")


def _object_schema(parameters: JsonObject) -> JsonObject:
    """The schema with the type that it has at least implied; `{}` is a function without any."""
    if not parameters:
        return {"type": "object", "properties": {}}
    return parameters if "type" in parameters else {"type": "object", **parameters}


def _choice(
    choice: object, tools: tuple[FunctionTool, ...], shape: ToolShape
) -> tuple[ToolMode, tuple[FunctionTool, ...]]:
    """The mode, and the tools that may be called."""
    path = "tool_choice"
    if isinstance(choice, str):
        mode = ToolMode(one_of(choice, path, tuple(ToolMode)))
        return mode, () if mode is ToolMode.NONE else tools
    if not isinstance(choice, dict):
        raise invalid_type(path, "a string or an object", choice)
    kind = as_string(required(choice, "type", path), f"{path}.type")
    if kind == "function":
        return ToolMode.REQUIRED, (_named(choice, tools, path, shape),)
    if kind != "allowed_tools":
        raise unsupported_parameter(
            f"{path}.type",
            f"Tools of the type '{kind}' cannot be run; use 'function' or 'allowed_tools'.",
        )
    allowed, at = choice, path
    if shape is ToolShape.NESTED:
        nothing_else(choice, path, ("type", "allowed_tools"))
        at = f"{path}.allowed_tools"
        allowed = as_object(required(choice, "allowed_tools", path), at)
    nothing_else(allowed, at, ("type", "mode", "tools"))
    mode = ToolMode(one_of(required(allowed, "mode", at), f"{at}.mode", ("auto", "required")))
    names = as_array(required(allowed, "tools", at), f"{at}.tools")
    if not names:
        raise invalid_value(f"{at}.tools", "expected at least one tool, got []")
    named = {
        _named(as_object(each, f"{at}.tools[{i}]"), tools, f"{at}.tools[{i}]", shape).name
        for i, each in enumerate(names)
    }
    return mode, tuple(tool for tool in tools if tool.name in named)


def _named(
    reference: JsonObject, tools: tuple[FunctionTool, ...], path: str, shape: ToolShape
) -> FunctionTool:
    """The tool that `{"type": "function", ...}` names."""
    kind = one_of(required(reference, "type", path), f"{path}.type", ("function",))
    fields, at = reference, path
    if shape is ToolShape.NESTED:
        nothing_else(reference, path, ("type", kind))
        at = f"{path}.{kind}"
        fields = as_object(required(reference, kind, path), at)
    nothing_else(fields, at, ("type", "name"))
    name = as_string(required(fields, "name", at), f"{at}.name")
    for tool in tools:
        if tool.name == name:
            return tool
    raise invalid_value(
        f"{at}.name", f"no tool is called {shown(name)}; there are {listed(t.name for t in tools)}"
    )
