"""Reads nested JSON values; whatever is wrong is named by its path."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from trunkline.engine.requests.errors import (
    invalid_type,
    invalid_value,
    missing_parameter,
    not_among,
    unsupported_parameter,
)

JsonObject = dict[str, Any]

_as_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def check_writable(value: object, path: str) -> None:
    """Raise RequestError unless `value` can be written as JSON again.

    Half of a surrogate pair cannot, nor a number like 1e999, nor what is nested too deeply.
    """
    try:
        text = value if isinstance(value, str) else _as_json(value)
        text.encode()
    except UnicodeEncodeError:
        raise invalid_value(path, "it holds half of a surrogate pair") from None
    except RecursionError:
        raise invalid_value(path, "it is nested too deeply") from None
    except ValueError:
        raise invalid_value(path, "it holds a number that JSON does not have") from None


def as_object(value: object, path: str) -> JsonObject:
    """`value`, which is an object.

    Raises:
        RequestError: it is not; likewise in what follows.
    """
    if not isinstance(value, dict):
        raise invalid_type(path, "an object", value)
    return value


def as_array(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid_type(path, "an array", value)
    return value


def as_string(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise invalid_type(path, "a string", value)
    return value


def as_bool(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise invalid_type(path, "a boolean", value)
    return value


def as_filled_string(value: object, path: str) -> str:
    """A string that is not empty."""
    text = as_string(value, path)
    if not text:
        raise invalid_value(path, "expected a string that is not empty, got ''")
    return text


def one_of(value: object, path: str, allowed: Collection[str]) -> str:
    text = as_string(value, path)
    if text not in allowed:
        raise not_among(path, text, allowed)
    return text


def required(container: Mapping[str, Any], name: str, path: str) -> Any:
    """The value of `name`, which must be there and not null; `path` is the container's."""
    value = container.get(name)
    if value is None:
        raise missing_parameter(f"{path}.{name}")
    return value


def optional_string(container: Mapping[str, Any], name: str, path: str) -> str | None:
    value = container.get(name)
    return None if value is None else as_string(value, f"{path}.{name}")


def optional_bool(container: Mapping[str, Any], name: str, path: str) -> bool | None:
    value = container.get(name)
    return None if value is None else as_bool(value, f"{path}.{name}")


def nothing_else(container: Mapping[str, Any], path: str, known: Collection[str]) -> None:
    """Raise RequestError when `container` holds a value under a name that is not `known`."""
    for name, value in container.items():
        if name not in known and value is not None:
            raise unsupported_parameter(f"{path}.{name}")
