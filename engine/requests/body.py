"""What the bodies of all endpoints have in common: each field is honoured, accepted or refused.

A field that is null counts as not given. Fields that no endpoint has heard of are refused too: a
misspelt one would change the answer in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from trunkline.engine.requests.checks import check_writable
from trunkline.engine.requests.errors import (
    RequestError,
    invalid_type,
    invalid_value,
    missing_parameter,
    shown,
    unsupported_parameter,
)
from trunkline.store.json_types import NAMES


@dataclass(frozen=True)
class Refused:
    """A field that cannot be honoured, unless it asks for nothing.

    ``reason`` is a sentence, which may say what to do instead.
    """

    harmless: tuple[object, ...] = ()
    reason: str | None = None


# Fields of OpenAI's and vLLM's that say who asks, how soon, or what to keep.
ACCEPTED_EVERYWHERE = frozenset({"user", "priority", "request_id", "cache_salt"})


class RequestBody(BaseModel):
    """The body of a request, parsed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str

    # Parsed fields -> the fields of the body that they are read from, where the names differ.
    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Fields that do not change the answer.
    accepted: ClassVar[frozenset[str]] = ACCEPTED_EVERYWHERE
    refused: ClassVar[Mapping[str, Refused]] = {}

    @classmethod
    @cache
    def honoured(cls) -> frozenset[str]:
        """The names of the body's fields that change the answer."""
        read = (name for names in cls.sources.values() for name in names)
        return frozenset({*(cls.model_fields.keys() - cls.sources.keys()), *read})

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Parse a body.

        Raises:
            RequestError: a field is missing, of the wrong type, out of range or not supported.
        """
        given = {name: value for name, value in body.items() if value is not None}
        cls._check_names(given)
        for name, value in given.items():
            check_writable(value, name)
        names = cls.model_fields.keys()
        fields = {name: value for name, value in given.items() if name in names}
        try:
            return cls.model_validate(fields | cls.read(given))
        except ValidationError as error:
            raise _request_error(error) from None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003  # for subclasses
        """The parsed fields that are in `sources`, of those that the body has.

        Raises:
            RequestError: likewise.
        """
        return {}

    @classmethod
    def _check_names(cls, body: Mapping[str, Any]) -> None:
        honoured = cls.honoured()
        for name, value in body.items():
            if name in honoured or name in cls.accepted:
                continue
            refused = cls.refused.get(name)
            if refused is None:
                raise unsupported_parameter(name, "This endpoint has no such parameter.")
            if not _is_among(value, refused.harmless):
                raise unsupported_parameter(name, refused.reason)


def _is_among(value: object, harmless: tuple[object, ...]) -> bool:
    """Whether `value` is one of them, where 1 is not true."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless
    )


def _request_error(error: ValidationError) -> RequestError:
    """The first thing that is wrong, in the words of OpenAI's API."""
    first = error.errors(include_url=False)[0]
    param = _path(first["loc"])
    kind, given = first["type"], first.get("input")
    if kind == "missing":
        return missing_parameter(param)
    if kind.endswith("_type") or kind == "int_from_float":
        wanted = NAMES[_TYPES[kind.removesuffix("_type").removesuffix("_from_float")]]
        return invalid_type(param, wanted, given)
    return invalid_value(param, f"{first['msg']}, got {shown(given)}")


# Pydantic's word for a type -> the type.
_TYPES = {"string": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list}


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].role` for ("messages", 0, "role")."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path
