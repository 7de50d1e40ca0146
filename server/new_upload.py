"""The bodies of requests about uploads, parsed once into what can be done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trunkline.server.errors import invalid_type, invalid_value, missing_parameter
from trunkline.server.new_file import SizeLimits, parse_expires_after, parse_purpose
from trunkline.store.uploads import NewUpload

MAX_PARTS = 10_000
MD5 = re.compile("[0-9a-fA-F]{32}")


def parse_new_upload(body: Mapping[str, Any], limits: SizeLimits) -> NewUpload:
    """The upload that `body` asks for. Unknown keys are ignored.

    Raises:
        ApiError: something is missing or wrong.
    """
    for name in ("filename", "purpose", "bytes", "mime_type"):
        if body.get(name) is None:
            raise missing_parameter(name)
    for name in ("filename", "mime_type"):
        if not isinstance(body[name], str):
            raise invalid_type(name, "a string", body[name])
        if not body[name].strip():
            raise invalid_value(name, f"Invalid value for '{name}': it is empty.")
    purpose = parse_purpose(body["purpose"])
    num_bytes, maximum = body["bytes"], limits.maximum(purpose)
    if type(num_bytes) is not int:
        raise invalid_type("bytes", "an integer", num_bytes)
    if not 0 <= num_bytes <= maximum:
        raise invalid_value(
            "bytes",
            f"Invalid value for 'bytes': expected from 0 to {maximum} for the purpose "
            f"'{purpose}', got {num_bytes}.",
        )
    return NewUpload(
        filename=body["filename"],
        purpose=purpose,
        mime_type=body["mime_type"],
        num_bytes=num_bytes,
        file_expires_after_seconds=parse_expires_after(body.get("expires_after")),
    )


def parse_part_ids(value: Any) -> tuple[str, ...]:
    """The ids of an upload's parts, in the order of their bytes.

    Raises:
        ApiError: they are missing, too many, none, or not all different.
    """
    if value is None:
        raise missing_parameter("part_ids")
    if not isinstance(value, list):
        raise invalid_type("part_ids", "an array", value)
    if len(value) > MAX_PARTS:
        raise invalid_value(
            "part_ids",
            f"Invalid value for 'part_ids': {len(value)} parts, at most {MAX_PARTS} are allowed.",
        )
    seen: set[str] = set()
    for i, part_id in enumerate(value):
        if not isinstance(part_id, str):
            raise invalid_type(f"part_ids[{i}]", "a string", part_id)
        if part_id in seen:
            raise invalid_value(
                "part_ids", f"Invalid value for 'part_ids': '{part_id}' is in it twice."
            )
        seen.add(part_id)
    return tuple(value)


def parse_md5(value: Any) -> str | None:
    """An MD5 sum in hexadecimal digits.

    Raises:
        ApiError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid_type("md5", "a string", value)
    if not MD5.fullmatch(value):
        raise invalid_value(
            "md5", f"Invalid value for 'md5': expected 32 hexadecimal digits, got '{value}'."
        )
    return value
