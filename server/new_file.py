"""What makes a file acceptable, however it is uploaded: purpose, size, life and content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trunkline.server.errors import ApiError, invalid_type, invalid_value, missing_parameter
from trunkline.server.multipart import MAX_OVERHEAD_BYTES
from trunkline.store.blobs import BlobWriter

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRES_SECONDS, MAX_EXPIRES_SECONDS = 3600, 2_592_000
UTF8_BOM = b"\xef\xbb\xbf"


def parse_purpose(value: Any) -> str:
    """The purpose of a file.

    Raises:
        ApiError: it is missing, or none of those that a client may give a file.
    """
    if value is None:
        raise missing_parameter("purpose")
    if not isinstance(value, str):
        raise invalid_type("purpose", "a string", value)
    if value not in PURPOSES:
        allowed = ", ".join(f"'{name}'" for name in PURPOSES)
        raise invalid_value(
            "purpose", f"Invalid value: '{value}'. Supported values are: {allowed}."
        )
    return value


def parse_expires_after(value: Any) -> int | None:
    """The life of a file in seconds, from an object `{"anchor": "created_at", "seconds": …}`.

    Raises:
        ApiError: something in it is missing or wrong.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid_type("expires_after", "an object", value)
    anchor, seconds = value.get("anchor"), value.get("seconds")
    if anchor != "created_at":
        raise invalid_value(
            "expires_after.anchor",
            f"Invalid value for 'expires_after.anchor': expected 'created_at', got {anchor!r}.",
        )
    if type(seconds) is not int or not MIN_EXPIRES_SECONDS <= seconds <= MAX_EXPIRES_SECONDS:
        raise invalid_value(
            "expires_after.seconds",
            f"Invalid value for 'expires_after.seconds': expected an integer from "
            f"{MIN_EXPIRES_SECONDS} to {MAX_EXPIRES_SECONDS}, got {seconds!r}.",
        )
    return seconds


@dataclass(frozen=True)
class SizeLimits:
    """How many bytes a file may have."""

    max_file_bytes: int
    max_batch_file_bytes: int

    def maximum(self, purpose: str | None) -> int:
        """The limit for a purpose. None: not known yet."""
        if purpose == "batch":
            return min(self.max_file_bytes, self.max_batch_file_bytes)
        return self.max_file_bytes


class FileContent:
    """The bytes of a file on their way into a blob, never more than it may have."""

    def __init__(self, writer: BlobWriter, limits: SizeLimits) -> None:
        self._writer = writer
        self._limits = limits
        self._first = b""  # that is not blank

    def write(self, data: bytes, purpose: str | None) -> None:
        """Append `data`. A client may send its purpose, None until then, behind the file.

        Raises:
            ApiError: the file becomes too large.
        """
        maximum = self._limits.maximum(purpose)
        if self._writer.num_bytes + len(data) > maximum:
            raise too_large("file", maximum)
        if not self._first:
            start = data if self._writer.num_bytes else data.removeprefix(UTF8_BOM)
            self._first = start.lstrip()[:1]
        self._writer.write(data)

    def check(self, purpose: str, filename: str) -> None:
        """Raise ApiError unless the bytes that were written may be a file of this purpose."""
        maximum = self._limits.maximum(purpose)
        if self._writer.num_bytes > maximum:
            raise too_large("file", maximum)
        # Many clients send no name or another one, so a file is refused only when its content is
        # not JSON objects either.
        if (
            purpose == "batch"
            and self._writer.num_bytes
            and self._first != b"{"
            and not filename.endswith(".jsonl")
        ):
            raise ApiError(400, "Invalid file format for Batch API. Must be .jsonl")


def check_content_length(headers: Mapping[str, str], name: str, max_bytes: int) -> None:
    """Raise ApiError when a request says at its beginning that its field `name` is too large."""
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes + MAX_OVERHEAD_BYTES:
        raise too_large(name, max_bytes)


def too_large(name: str, max_bytes: int) -> ApiError:
    """The bytes of the field `name` are too many."""
    return ApiError(
        413, f"The {name} is larger than the maximum of {max_bytes} bytes.", name, "file_too_large"
    )


def file_expires_at(now: int, seconds: int | None, purpose: str, batch_seconds: int) -> int | None:
    """When a file ends that is made at `now`, in unix seconds; None: never.

    Args:
        seconds: life that its client asked for; None: the purpose decides.
        batch_seconds: life of a batch file of which nobody asked for another.
    """
    if seconds is None:
        if purpose != "batch":
            return None
        seconds = batch_seconds
    return now + seconds
