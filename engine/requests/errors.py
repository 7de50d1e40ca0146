"""What is wrong with a request, in the words and the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable
from reprlib import Repr
from typing import Any, ClassVar

from trunkline.store.json_types import json_type


class RequestError(Exception):
    """A request that cannot be run: the line's own error, in the API's shape.

    Attributes:
        message: what was given and what is allowed.
        param: the field at fault, or None.
        code: a short identifier, or None.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        self.message = _storable(message)
        super().__init__(self.message)
        self.param = None if param is None else _storable(param)
        self.code = code

    status_code: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"

    def as_body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


class InternalError(RequestError):
    """This engine's own fault: a request that it could not handle, though nothing is wrong with it.

    ``doing`` is what failed, for the message.
    """

    status_code = 500
    kind = "server_error"

    def __init__(self, doing: str) -> None:
        super().__init__(f"The engine failed while {doing}.", code="internal_error")


def _storable(text: str) -> str:
    """`text` with halves of surrogate pairs, which UTF-8 cannot hold, spelt out."""
    return text.encode(errors="backslashreplace").decode()


_short = Repr()
_short.maxstring = _short.maxother = 80


def shown(value: object) -> str:
    """`value` for a message, shortened where it is long or deep."""
    return _short.repr(value)


def missing_parameter(param: str) -> RequestError:
    return RequestError(
        f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
    )


def invalid_type(param: str, expected: str, given: object) -> RequestError:
    """`expected` with its article, such as "an object"."""
    return RequestError(
        f"Invalid type for '{param}': expected {expected}, but got {json_type(given)} instead.",
        param,
        "invalid_type",
    )


def invalid_value(param: str, reason: str) -> RequestError:
    """`reason` says what was given and what is allowed; a sentence's end without its point."""
    return RequestError(f"Invalid value for '{param}': {reason}.", param, "invalid_value")


def not_among(param: str, given: object, allowed: Iterable[str]) -> RequestError:
    """`given` is none of the values that are allowed."""
    return invalid_value(param, f"expected one of {listed(allowed)}, got {shown(given)}")


def unsupported_parameter(param: str, reason: str | None = None) -> RequestError:
    """A field, or a value of one, that this engine cannot honour."""
    because = "" if reason is None else f" {reason}"
    return RequestError(
        f"The parameter '{param}' is not supported.{because}", param, "unsupported_parameter"
    )


def listed(names: Iterable[str]) -> str:
    """`'a', 'b' and 'c'`."""
    quoted = [f"'{name}'" for name in names]
    if len(quoted) == 1:
        return quoted[0]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"
