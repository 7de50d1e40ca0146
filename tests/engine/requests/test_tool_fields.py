"""Which tools may be offered, and which choices made among them."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.tool_fields import MAX_TOOLS, ToolShape, read_tool_use
from trunkline.engine.requests.tools import FunctionTool, ToolMode, ToolUse

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
F = {"name": "f", "description": "Does f.", "parameters": SCHEMA, "strict": True}
G = {"name": "g"}
NESTED = [{"type": "function", "function": F}, {"type": "function", "function": G}]
FLAT = [{"type": "function", **F}, {"type": "function", **G}]
TOOLS = (FunctionTool("f", "Does f.", SCHEMA, strict=True), FunctionTool("g"))


def use(tools: Any, shape: ToolShape = ToolShape.NESTED, **fields: Any) -> ToolUse | None:
    return read_tool_use({"tools": tools, **fields}, shape)


def refused(tools: Any, shape: ToolShape = ToolShape.NESTED, **fields: Any) -> tuple[Any, Any]:
    with pytest.raises(RequestError) as caught:
        use(tools, shape, **fields)
    return caught.value.param, caught.value.code


@pytest.mark.parametrize(("given", "shape"), [(NESTED, ToolShape.NESTED), (FLAT, ToolShape.FLAT)])
def test_both_shapes_say_the_same(given: Any, shape: ToolShape) -> None:
    assert use(given, shape) == ToolUse(TOOLS, TOOLS, ToolMode.AUTO)


def test_no_tools() -> None:
    for tools in (None, []):
        for choice in (None, "none", "auto"):
            assert use(tools, tool_choice=choice, parallel_tool_calls=False) is None
        assert refused(tools, tool_choice="required") == ("tool_choice", "invalid_value")


def test_simple_choices() -> None:
    assert use(NESTED, tool_choice="auto") == ToolUse(TOOLS, TOOLS, ToolMode.AUTO)
    assert use(NESTED, tool_choice="required") == ToolUse(TOOLS, TOOLS, ToolMode.REQUIRED)
    assert use(NESTED, tool_choice="none") == ToolUse(TOOLS, (), ToolMode.NONE)
    one_by_one = use(NESTED, parallel_tool_calls=False)
    assert one_by_one is not None
    assert not one_by_one.parallel


def test_named_choice() -> None:
    named = ToolUse(TOOLS, TOOLS[1:], ToolMode.REQUIRED)
    assert use(NESTED, tool_choice={"type": "function", "function": {"name": "g"}}) == named
    assert use(FLAT, ToolShape.FLAT, tool_choice={"type": "function", "name": "g"}) == named


@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_allowed_tools(mode: ToolMode) -> None:
    allowed = ToolUse(TOOLS, TOOLS[:1], mode)
    nested = {"mode": mode.value, "tools": [{"type": "function", "function": {"name": "f"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": nested}
    assert use(NESTED, tool_choice=choice) == allowed
    flat = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "f"}]}
    assert use(FLAT, ToolShape.FLAT, tool_choice=flat) == allowed


@pytest.mark.parametrize(
    ("choice", "param", "code"),
    [
        ("any", "tool_choice", "invalid_value"),
        (5, "tool_choice", "invalid_type"),
        ({"function": {"name": "f"}}, "tool_choice.type", "missing_required_parameter"),
        ({"type": "custom", "custom": {"name": "f"}}, "tool_choice.type", "unsupported_parameter"),
        ({"type": "function"}, "tool_choice.function", "missing_required_parameter"),
        (
            {"type": "function", "function": {"name": "h"}},
            "tool_choice.function.name",
            "invalid_value",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": NESTED}},
            "tool_choice.allowed_tools.mode",
            "invalid_value",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            "tool_choice.allowed_tools.tools",
            "invalid_value",
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [
                        {"type": "function", "function": {"name": "f"}},
                        {"type": "function", "function": {"name": "h"}},
                    ],
                },
            },
            "tool_choice.allowed_tools.tools[1].function.name",
            "invalid_value",
        ),
    ],
)
def test_a_bad_choice_is_named(choice: Any, param: str, code: str) -> None:
    assert refused(NESTED, tool_choice=choice) == (param, code)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"name": None}, "name", "missing_required_parameter"),
        ({"name": 5}, "name", "invalid_type"),
        ({"name": ""}, "name", "invalid_value"),
        ({"name": "a b"}, "name", "invalid_value"),
        ({"name": "a\n"}, "name", "invalid_value"),
        ({"name": "x" * 65}, "name", "invalid_value"),
        ({"name": "g"}, "name", "invalid_value"),  # there is another
        ({"description": 5}, "description", "invalid_type"),
        ({"strict": "yes"}, "strict", "invalid_type"),
        ({"parameters": []}, "parameters", "invalid_type"),
        ({"parameters": {"type": "string"}}, "parameters.type", "invalid_function_parameters"),
        ({"parameters": {"properties": []}}, "parameters.properties", "invalid_type"),
        ({"parameters": {"properties": {"a": 5}}}, "parameters.properties.a", "invalid_type"),
        ({"parameters": {"required": "a"}}, "parameters.required", "invalid_type"),
        ({"parameters": {"required": [5]}}, "parameters.required[0]", "invalid_type"),
        ({"new": 5}, "new", "unsupported_parameter"),
        ({"defer_loading": True}, "defer_loading", "unsupported_parameter"),
        ({"allowed_callers": ["programmatic"]}, "allowed_callers", "unsupported_parameter"),
    ],
)
def test_a_bad_function_is_named(change: dict[str, Any], param: str, code: str) -> None:
    nested = [NESTED[1], {"type": "function", "function": {**F, **change}}]
    assert refused(nested) == (f"tools[1].function.{param}", code)
    flat = [FLAT[1], {"type": "function", **F, **change}]
    assert refused(flat, ToolShape.FLAT) == (f"tools[1].{param}", code)


def test_other_bad_tools() -> None:
    assert refused({}) == ("tools", "invalid_type")
    assert refused(["f"]) == ("tools[0]", "invalid_type")
    assert refused([{"function": F}]) == ("tools[0].type", "missing_required_parameter")
    assert refused([{"type": "web_search"}]) == ("tools[0].type", "unsupported_parameter")
    assert refused([{"type": "function", "function": "f"}]) == ("tools[0].function", "invalid_type")
    assert refused(FLAT) == ("tools[0].name", "unsupported_parameter")
    assert refused(NESTED, ToolShape.FLAT) == ("tools[0].function", "unsupported_parameter")
    many = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(MAX_TOOLS + 1)]
    assert refused(many) == ("tools", "invalid_value")
    assert refused(NESTED, parallel_tool_calls=1) == ("parallel_tool_calls", "invalid_type")


@pytest.mark.parametrize(
    ("parameters", "schema"),
    [
        (None, {"type": "object", "properties": {}}),
        ({}, {"type": "object", "properties": {}}),
        ({"properties": {"a": True}}, {"type": "object", "properties": {"a": True}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": SCHEMA}}, ...),
    ],
)
def test_parameters_are_an_object(parameters: Any, schema: Any) -> None:
    if schema is ...:
        schema = {"type": "object", **parameters}
    found = use([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    assert found is not None
    assert found.tools[0].parameters == schema
