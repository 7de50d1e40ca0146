"""Uploads: a multipart body streamed into a blob, part by part, in whatever order they come.

Memory stays flat: what arrives is written on at once. python-multipart splits the body; this
module knows which part is the file and which are small fields.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from trunkline.server.errors import ApiError, missing_parameter
from trunkline.store.blobs import BlobWriter

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 64
DEFAULT_FILENAME = "upload"
UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SizeLimits:
    """How many bytes an upload may have."""

    max_file_bytes: int
    max_batch_file_bytes: int

    def check(self, purpose: str | None, num_bytes: int) -> None:
        """Raise ApiError if so many bytes are too many. An unknown purpose may be any."""
        maximum = self.max_file_bytes
        if purpose == "batch":
            maximum = min(maximum, self.max_batch_file_bytes)
        if num_bytes > maximum:
            raise too_large(maximum)


@dataclass
class UploadForm:
    """What a multipart upload holds besides the bytes of its file."""

    filename: str = DEFAULT_FILENAME
    has_file: bool = False
    first_bytes: bytes = b""  # of the file, from the first that is not blank
    fields: dict[str, str] = field(default_factory=dict)


async def read_upload(
    content_type: str | None,
    body: AsyncIterator[bytes],
    writer: BlobWriter,
    limits: SizeLimits,
) -> UploadForm:
    """Read a multipart body; the part named "file" goes to `writer`.

    Raises:
        ApiError: not a multipart body, cut off, without a file, or too large.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(
            400,
            f"The content type is {content_type!r}; an upload must be multipart/form-data with "
            "a boundary.",
        )
    receiver = _Receiver(writer, limits)
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
    try:
        async for chunk in body:
            # Disk and hash take their time, which other requests should not wait for.
            await run_sync(parser.write, chunk)
    except FormParserError as error:
        raise ApiError(400, f"The multipart body cannot be parsed: {error}") from None
    if not receiver.is_complete:
        raise ApiError(400, "The multipart body ends before its closing boundary.")
    if not receiver.form.has_file:
        raise missing_parameter("file")
    return receiver.form


class _Receiver:
    """Callbacks of the parser."""

    def __init__(self, writer: BlobWriter, limits: SizeLimits) -> None:
        self.form = UploadForm()
        self.is_complete = False
        self._writer = writer
        self._limits = limits
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
        self._is_file = self._name == "file"
        if not self._is_file:
            if len(self.form.fields) >= MAX_FIELDS:
                raise ApiError(400, f"The upload has more than {MAX_FIELDS} fields.")
            return
        if self.form.has_file:
            raise ApiError(400, "The upload has more than one part named 'file'.", "file")
        self.form.has_file = True
        filename = options.get(b"filename", b"").decode(errors="replace")
        self.form.filename = filename.strip() or DEFAULT_FILENAME

    def data(self, data: bytes, start: int, end: int) -> None:
        part = data[start:end]
        if self._is_file:
            self._file_data(part)
        elif len(self._field) + len(part) > MAX_FIELD_BYTES:
            raise ApiError(
                400, f"The field {self._name!r} is longer than {MAX_FIELD_BYTES} bytes.", self._name
            )
        else:
            self._field += part

    def _file_data(self, part: bytes) -> None:
        self._limits.check(self.form.fields.get("purpose"), self._writer.num_bytes + len(part))
        if not self.form.first_bytes:
            start = part.removeprefix(UTF8_BOM) if not self._writer.num_bytes else part
            self.form.first_bytes = start.lstrip()[:1]
        self._writer.write(part)

    def end_part(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._field.decode(errors="replace")

    def end(self) -> None:
        self.is_complete = True


def too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"The file is larger than the maximum of {max_bytes} bytes.", "file", "file_too_large"
    )
