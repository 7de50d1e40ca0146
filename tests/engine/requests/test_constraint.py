"""What form an answer may be asked to have."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.engine.requests.constraint import Constraint, ConstraintKind, read_constraint
from trunkline.engine.requests.errors import RequestError

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **fields}}


@pytest.mark.parametrize(
    ("fields", "kind", "value", "param"),
    [
        (
            {"response_format": {"type": "json_object"}},
            ConstraintKind.JSON_OBJECT,
            None,
            "response_format",
        ),
        (
            {"response_format": json_schema(strict=True, description="d")},
            ConstraintKind.JSON_SCHEMA,
            SCHEMA,
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": json_schema(strict=False)},
            ConstraintKind.JSON_SCHEMA,
            SCHEMA,
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": json_schema(schema=None)},
            ConstraintKind.JSON_OBJECT,
            None,
            "response_format.json_schema",
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            ConstraintKind.JSON_SCHEMA,
            SCHEMA,
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json_object": True, "regex": None}},
            ConstraintKind.JSON_OBJECT,
            None,
            "structured_outputs.json_object",
        ),
        (
            {"structured_outputs": {"choice": ["a", ""]}},
            ConstraintKind.CHOICE,
            ("a", ""),
            "structured_outputs.choice",
        ),
        ({"guided_json": '{"type": "object"}'}, ConstraintKind.JSON_SCHEMA, ..., "guided_json"),
        ({"guided_regex": "a+"}, ConstraintKind.REGEX, "a+", "guided_regex"),
        ({"guided_choice": ["a"]}, ConstraintKind.CHOICE, ("a",), "guided_choice"),
        ({"guided_grammar": "start: X"}, ConstraintKind.LARK, "start: X", "guided_grammar"),
    ],
)
def test_every_way_to_ask(
    fields: dict[str, Any], kind: ConstraintKind, value: Any, param: str
) -> None:
    expected = {"type": "object"} if value is ... else value
    assert read_constraint(fields) == Constraint(kind, expected, param)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}])
def test_asking_for_nothing(fields: dict[str, Any]) -> None:
    assert read_constraint(fields) is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "json_object"}, "response_format", "invalid_type"),
        ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "response_format.schema",
            "unsupported_parameter",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": json_schema(name=None)},
            "response_format.json_schema.name",
            "missing_required_parameter",
        ),
        (
            {"response_format": json_schema(strict=1)},
            "response_format.json_schema.strict",
            "invalid_type",
        ),
        (
            {"response_format": json_schema(schema="object")},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs",
            "invalid_value",
        ),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs", "invalid_value"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag",
            "unsupported_parameter",
        ),
        ({"guided_json": "{"}, "guided_json", "invalid_value"),
        ({"guided_json": "[]"}, "guided_json", "invalid_type"),
        ({"guided_regex": ""}, "guided_regex", "invalid_value"),
        ({"guided_choice": []}, "guided_choice", "invalid_value"),
        ({"guided_choice": ["a", 1]}, "guided_choice[1]", "invalid_type"),
        ({"guided_grammar": 1}, "guided_grammar", "invalid_type"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "guided_regex",
            "invalid_value",
        ),
    ],
)
def test_a_bad_way_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_constraint(fields)
    assert (caught.value.param, caught.value.code) == (param, code)
