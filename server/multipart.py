"""Multipart bodies with one file in them, streamed part by part, in whatever order they come.

Memory stays flat: what arrives is passed on at once. python-multipart splits the body; this
module knows which part is the file and which are small fields.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from trunkline.server.errors import ApiError, missing_parameter

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 64
HANDED_OVER_BYTES = 256 * 1024
DEFAULT_FILENAME = "upload"

# Takes some bytes of the file, and the fields that have come before them.
FileSink = Callable[[bytes, Mapping[str, str]], None]

# What a body may have besides the file: boundaries, headers, small fields.
MAX_OVERHEAD_BYTES = 16 * MAX_FIELD_BYTES


@dataclass
class UploadForm:
    """What a multipart body holds besides the bytes of its file."""

    filename: str = DEFAULT_FILENAME
    has_file: bool = False
    fields: dict[str, str] = field(default_factory=dict)


async def read_upload(
    content_type: str | None, body: AsyncIterator[bytes], file_field: str, sink: FileSink
) -> UploadForm:
    """Read a multipart body; the bytes of the part named `file_field` go to `sink`, in a thread.

    Raises:
        ApiError: not a multipart body, cut off, or without a file; or what `sink` raises.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(
            400,
            f"The content type is {content_type!r}; an upload must be multipart/form-data with "
            "a boundary.",
        )
    receiver = _Receiver(file_field, sink)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": receiver.begin_part,
            "on_header_field": receiver.header_name,
            "on_header_value": receiver.header_value,
            "on_header_end": receiver.end_header,
            "on_headers_finished": receiver.end_headers,
            "on_part_data": receiver.data,
            "on_part_end": receiver.end_part,
            "on_end": receiver.end,
        },
    )
    limiter = _limiter()
    try:
        async for data in _collected(body):
            # Disk and hash take their time, which other requests should not wait for.
            await run_sync(parser.write, data, limiter=limiter)
    except FormParserError as error:
        raise ApiError(400, f"The multipart body cannot be parsed: {error}") from None
    if not receiver.is_complete:
        raise ApiError(400, "The multipart body ends before its closing boundary.")
    if not receiver.form.has_file:
        raise missing_parameter(file_field)
    return receiver.form


@cache
def _limiter() -> CapacityLimiter:
    """One piece of one upload is hashed and written at a time, and the event loop gives the next
    one its turn: so those who ask for something small get theirs in between, also on a machine
    with few processors. See docs/decisions/0021."""
    return CapacityLimiter(1)


async def _collected(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`body` in larger pieces: going to a thread costs as much as hashing 64 KiB does."""
    pending = bytearray()
    async for chunk in body:
        pending += chunk
        if len(pending) >= HANDED_OVER_BYTES:
            yield bytes(pending)
            pending.clear()
    yield bytes(pending)


class _Receiver:
    """Callbacks of the parser."""

    def __init__(self, file_field: str, sink: FileSink) -> None:
        self.form = UploadForm()
        self.is_complete = False
        self._file_field = file_field
        self._sink = sink
        self._header_name = b""
        self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._is_file = False
        self._name = ""
        self._field = b""

    def begin_part(self) -> None:
        self._headers = {}
        self._field = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == self._file_field
        if not self._is_file:
            if len(self.form.fields) >= MAX_FIELDS:
                raise ApiError(400, f"The upload has more than {MAX_FIELDS} fields.")
            return
        if self.form.has_file:
            raise ApiError(
                400, f"The upload has more than one part named '{self._name}'.", self._name
            )
        self.form.has_file = True
        filename = options.get(b"filename", b"").decode(errors="replace")
        self.form.filename = filename.strip() or DEFAULT_FILENAME

    def data(self, data: bytes, start: int, end: int) -> None:
        part = data[start:end]
        if self._is_file:
            self._sink(part, self.form.fields)
        elif len(self._field) + len(part) > MAX_FIELD_BYTES:
            raise ApiError(
                400, f"The field {self._name!r} is longer than {MAX_FIELD_BYTES} bytes.", self._name
            )
        else:
            self._field += part

    def end_part(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._field.decode(errors="replace")

    def end(self) -> None:
        self.is_complete = True
