"""What form an answer must have, whatever the field that asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trunkline.engine.requests.checks import (
    JsonObject,
    as_array,
    as_bool,
    as_filled_string,
    as_object,
    as_string,
    nothing_else,
    one_of,
    optional_bool,
    optional_string,
    required,
)
from trunkline.engine.requests.errors import RequestError, invalid_type, invalid_value


class ConstraintKind(StrEnum):
    """The language that a constraint is written in."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"  # any object
    REGEX = "regex"
    CHOICE = "choice"  # one of some strings
    LARK = "lark"  # a context-free grammar, Lark as llguidance has it, or GBNF


@dataclass(frozen=True)
class Constraint:
    """The form that an answer must have.

    ``value`` is the schema (an object or a boolean), None for JSON_OBJECT, the pattern, a tuple of
    strings, or the text of the grammar. ``param`` is the field that asks for it, for errors.
    """

    kind: ConstraintKind
    value: Any
    param: str


FORMAT_TYPES = ("json_object", "json_schema", "text")
# What vLLM calls them, in `structured_outputs` and after `guided_`.
GUIDED_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
# The fields of chat and text completions that constrain an answer.
STRUCTURED_FIELDS = ("structured_outputs", *GUIDED_FIELDS)


def read_constraint(body: Mapping[str, Any]) -> Constraint | None:
    """What `response_format` and vLLM's fields ask for together.

    Raises:
        RequestError: one of them is malformed, or more than one asks for something.
    """
    found = [
        constraint
        for constraint in (
            response_format(body.get("response_format")),
            structured_outputs(body.get("structured_outputs")),
            *(_guided(name, body[name]) for name in GUIDED_FIELDS if body.get(name) is not None),
        )
        if constraint is not None
    ]
    if len(found) > 1:
        raise RequestError(
            f"Only one field may constrain the answer; '{found[0].param}' and '{found[1].param}' "
            "both do.",
            found[1].param,
            "invalid_value",
        )
    return found[0] if found else None


def response_format(value: object, path: str = "response_format") -> Constraint | None:
    """The constraint of a `response_format` of chat completions."""
    if value is None:
        return None
    given = as_object(value, path)
    kind = one_of(required(given, "type", path), f"{path}.type", FORMAT_TYPES)
    if kind != "json_schema":
        nothing_else(given, path, ("type",))
        return Constraint(ConstraintKind.JSON_OBJECT, None, path) if kind == "json_object" else None
    nothing_else(given, path, ("type", "json_schema"))
    inner = f"{path}.json_schema"
    return json_schema_format(as_object(required(given, "json_schema", path), inner), inner)


def json_schema_format(given: JsonObject, path: str) -> Constraint:
    """The constraint of an object with `name`, `schema`, `strict` and `description`.

    An answer follows its schema whether `strict` is true or not. Without a schema it is an object.
    """
    as_filled_string(required(given, "name", path), f"{path}.name")
    optional_string(given, "description", path)
    optional_bool(given, "strict", path)
    nothing_else(given, path, ("type", "name", "schema", "description", "strict"))
    if given.get("schema") is None:
        return Constraint(ConstraintKind.JSON_OBJECT, None, path)
    schema = as_object(given["schema"], f"{path}.schema")
    return Constraint(ConstraintKind.JSON_SCHEMA, schema, f"{path}.schema")


def structured_outputs(value: object) -> Constraint | None:
    """The constraint of vLLM's `structured_outputs`, which names exactly one."""
    if value is None:
        return None
    path = "structured_outputs"
    given = as_object(value, path)
    nothing_else(given, path, (*_READERS, "json_object"))
    found = [
        read(given[name], f"{path}.{name}")
        for name, read in _READERS.items()
        if given.get(name) is not None
    ]
    if given.get("json_object") and as_bool(given["json_object"], f"{path}.json_object"):
        found.append(Constraint(ConstraintKind.JSON_OBJECT, None, f"{path}.json_object"))
    if len(found) != 1:
        raise invalid_value(
            path,
            f"expected exactly one of 'json', 'json_object', 'regex', 'choice' and "
            f"'grammar', got {len(found)}",
        )
    return found[0]


def _guided(name: str, value: object) -> Constraint:
    return _READERS[name.removeprefix("guided_")](value, name)


def _json(value: object, path: str) -> Constraint:
    schema = value
    if isinstance(value, str):
        try:
            schema = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise invalid_value(path, f"it is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise invalid_type(path, "an object", schema)
    return Constraint(ConstraintKind.JSON_SCHEMA, schema, path)


def _regex(value: object, path: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, as_filled_string(value, path), path)


def _choice(value: object, path: str) -> Constraint:
    choices = tuple(as_string(each, f"{path}[{i}]") for i, each in enumerate(as_array(value, path)))
    if not choices:
        raise invalid_value(path, "expected at least one string, got []")
    return Constraint(ConstraintKind.CHOICE, choices, path)


def _lark(value: object, path: str) -> Constraint:
    return Constraint(ConstraintKind.LARK, as_filled_string(value, path), path)


_READERS: Mapping[str, Callable[[object, str], Constraint]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
}
