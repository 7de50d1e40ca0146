"""The bodies of requests that hold JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import Request

from trunkline.server.errors import ApiError
from trunkline.store.batch_file import UNSTORABLE, parse_json
from trunkline.store.json_types import json_type

# The longest metadata of a batch take 40 kB, or some times that when every character is escaped.
MAX_BODY_BYTES = 1024 * 1024


async def read_body(request: Request, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body of `request`.

    Raises:
        ApiError: it is too long.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise ApiError(
                413, f"The body of this request is longer than the maximum of {max_bytes} bytes."
            )
    return bytes(body)


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object that is the body of `request`.

    Raises:
        ApiError: it is too long, or no object.
    """
    return parse_object(await read_body(request))


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a request's body is.

    Raises:
        ApiError: it is none, or cannot be stored.
    """
    try:
        body = parse_json(raw)
        is_storable = not any(map(UNSTORABLE.search, _strings(body)))
    except (ValueError, RecursionError):
        raise ApiError(400, "The body of this request is not valid JSON.") from None
    if not is_storable:
        raise ApiError(
            400,
            "The body of this request holds a NUL character or half of a surrogate pair; neither "
            "is allowed.",
        )
    if not isinstance(body, dict):
        raise ApiError(400, f"The body of this request is {json_type(body)}, not an object.")
    return body


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
