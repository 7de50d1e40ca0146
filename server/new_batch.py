"""The body of `POST /v1/batches`, parsed once into a batch that can be created."""

from __future__ import annotations

import hashlib
from typing import Any

from trunkline.server.errors import (
    ApiError,
    invalid_type,
    invalid_value,
    missing_parameter,
)
from trunkline.server.json_body import parse_object
from trunkline.store.endpoints import ENDPOINTS
from trunkline.store.errors import NotFound
from trunkline.store.files import Files
from trunkline.store.records import Idempotency, NewBatch

COMPLETION_WINDOW = "24h"
MAX_PRIORITY = 100
MAX_IDEMPOTENCY_KEY = 255
MAX_METADATA_PAIRS, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
MIN_EXPIRES_SECONDS, MAX_EXPIRES_SECONDS = 3600, 2_592_000


def parse_new_batch(
    raw: bytes, files: Files, expires_at: int, idempotency_key: str | None = None
) -> NewBatch:
    """The batch that the JSON text `raw` asks for. Unknown keys are ignored.

    Raises:
        ApiError: something is missing, wrong or not there.
    """
    body = parse_object(raw)
    for name in ("input_file_id", "endpoint", "completion_window"):
        if body.get(name) is None:
            raise missing_parameter(name)
        if not isinstance(body[name], str):
            raise invalid_type(name, "a string", body[name])
    if body["endpoint"] not in ENDPOINTS:
        *first, last = (f"'{name}'" for name in ENDPOINTS)
        allowed = f"{', '.join(first)} and {last}"
        raise invalid_value(
            "endpoint", f"Invalid value: '{body['endpoint']}'. Supported values are: {allowed}."
        )
    if body["completion_window"] != COMPLETION_WINDOW:
        raise invalid_value(
            "completion_window",
            f"Invalid value for 'completion_window': '{body['completion_window']}'. "
            f"Supported values are: '{COMPLETION_WINDOW}'.",
        )
    metadata = _metadata(body.get("metadata"))
    output_expires = _output_expires_after(body.get("output_expires_after"))
    _check_input_file(files, body["input_file_id"])
    return NewBatch(
        endpoint=body["endpoint"],
        input_file_id=body["input_file_id"],
        completion_window=body["completion_window"],
        expires_at=expires_at,
        metadata=metadata,
        output_expires_after_seconds=output_expires,
        priority=parse_priority(body.get("priority", 0)),
        idempotency=idempotency(idempotency_key, raw),
    )


def parse_priority(value: Any) -> int:
    """A batch's priority.

    Raises:
        ApiError: it is none.
    """
    if type(value) is not int:
        raise invalid_type("priority", "an integer", value)
    if not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        raise invalid_value(
            "priority",
            f"Invalid value for 'priority': expected from {-MAX_PRIORITY} to {MAX_PRIORITY}, got "
            f"{value}.",
        )
    return value


def idempotency(key: str | None, request: bytes) -> Idempotency | None:
    """What the header `Idempotency-Key` says about a request with this content.

    Raises:
        ApiError: the key is empty, too long, or not printable.
    """
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY or not key.isascii() or not key.isprintable():
        raise invalid_value(
            "Idempotency-Key",
            f"Invalid value for 'Idempotency-Key': it has {len(key)} characters, expected 1 to "
            f"{MAX_IDEMPOTENCY_KEY} printable ASCII characters.",
        )
    return Idempotency(key, hashlib.sha256(request).hexdigest())


def _check_input_file(files: Files, file_id: str) -> None:
    try:
        file = files.get(file_id)
    except NotFound:
        raise ApiError(
            400,
            f"Cannot find file {file_id}, or organization default does not have access to it.",
            "input_file_id",
            "invalid_request",
        ) from None
    if file.purpose != "batch":
        raise ApiError(
            400,
            f"File {file_id} has the purpose '{file.purpose}'; the input of a batch needs a file "
            "with the purpose 'batch'.",
            "input_file_id",
            "invalid_request",
        )


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid_type("metadata", "an object", value)
    if len(value) > MAX_METADATA_PAIRS:
        raise invalid_value(
            "metadata",
            f"Invalid 'metadata': {len(value)} pairs, at most {MAX_METADATA_PAIRS} are allowed.",
        )
    for key, text in value.items():
        name = f"metadata.{key}"
        if len(key) > MAX_METADATA_KEY:
            raise invalid_value(
                "metadata",
                f"Invalid 'metadata': a key has {len(key)} characters, at most "
                f"{MAX_METADATA_KEY} are allowed.",
            )
        if not isinstance(text, str):
            raise invalid_type(name, "a string", text)
        if len(text) > MAX_METADATA_VALUE:
            raise invalid_value(
                name,
                f"Invalid '{name}': {len(text)} characters, at most {MAX_METADATA_VALUE} are "
                "allowed.",
            )
    return value


def _output_expires_after(value: Any) -> int | None:
    if value is None:
        return None
    name = "output_expires_after"
    if not isinstance(value, dict):
        raise invalid_type(name, "an object", value)
    for key in ("anchor", "seconds"):
        if value.get(key) is None:
            raise missing_parameter(f"{name}.{key}")
    if value["anchor"] != "created_at":
        raise invalid_value(
            f"{name}.anchor",
            f"Invalid value for '{name}.anchor': expected 'created_at', got {value['anchor']!r}.",
        )
    seconds = value["seconds"]
    if type(seconds) is not int:
        raise invalid_type(f"{name}.seconds", "an integer", seconds)
    if not MIN_EXPIRES_SECONDS <= seconds <= MAX_EXPIRES_SECONDS:
        raise invalid_value(
            f"{name}.seconds",
            f"Invalid value for '{name}.seconds': expected from {MIN_EXPIRES_SECONDS} to "
            f"{MAX_EXPIRES_SECONDS}, got {seconds}.",
        )
    return seconds
