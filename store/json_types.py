"""What JSON calls the types of its values, for messages about a wrong one."""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def json_type(value: object) -> str:
    """The JSON type of `value`, with its article."""
    return NAMES[type(value)]
