"""Files: upload, list, retrieve, delete, content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from trunkline.server.multipart import read_upload
from trunkline.server.new_file import (
    PURPOSES,
    FileContent,
    SizeLimits,
    check_content_length,
    file_expires_at,
    parse_expires_after,
    parse_purpose,
)
from trunkline.server.openapi import EXPIRES_AFTER, multipart_body
from trunkline.server.routes.lists import Cursor
from trunkline.server.scope import ScopeOf
from trunkline.server.state import StateOf
from trunkline.server.wire import (
    DeletedFile,
    FileObject,
    ListObject,
    file_object,
    page_object,
)
from trunkline.server.writing import blob_writer
from trunkline.store.errors import NotFound
from trunkline.store.records import FileRecord, NewFile

router = APIRouter(prefix="/v1/files")

READ_BYTES = 256 * 1024


class FileBytes(StreamingResponse):
    media_type = "application/octet-stream"


@router.post(
    "",
    openapi_extra=multipart_body(
        {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"enum": list(PURPOSES)},
            "expires_after[anchor]": EXPIRES_AFTER["properties"]["anchor"],
            "expires_after[seconds]": EXPIRES_AFTER["properties"]["seconds"],
        },
        ["file", "purpose"],
    ),
)
async def upload(request: Request, state: StateOf, scope: ScopeOf) -> FileObject:
    settings = state.settings
    limits = SizeLimits(settings.max_file_bytes, settings.max_batch_file_bytes)
    check_content_length(request.headers, "file", limits.max_file_bytes)
    async with blob_writer(state.blobs) as writer:
        content = FileContent(writer, limits)
        form = await read_upload(
            request.headers.get("content-type"),
            request.stream(),
            "file",
            lambda data, fields: content.write(data, fields.get("purpose")),
        )
        purpose = parse_purpose(form.fields.get("purpose"))
        content.check(purpose, form.filename)
        expires_after = parse_expires_after(_expires_after(form.fields))

        def create() -> FileRecord:
            blob = writer.commit()
            now = state.now()
            expires_at = file_expires_at(
                now, expires_after, purpose, settings.batch_file_expires_seconds
            )
            try:
                return scope.files.create(NewFile(form.filename, purpose, blob, expires_at), now)
            except BaseException:
                state.blobs.delete(blob.key)
                raise

        return file_object(await run_sync(create))


def _expires_after(fields: dict[str, str]) -> dict[str, Any] | None:
    """The object that `expires_after[anchor]` and `expires_after[seconds]` make up."""
    given = {
        name: text
        for name in ("anchor", "seconds")
        if (text := fields.get(f"expires_after[{name}]")) is not None
    }
    seconds = given.get("seconds", "")
    # Seven digits are enough, and int() refuses some thousands of them.
    if re.fullmatch("[0-9]{1,7}", seconds):
        return given | {"seconds": int(seconds)}
    return given or None


@router.get("")
def list_files(
    scope: ScopeOf,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: Cursor = None,
) -> ListObject[FileObject]:
    return page_object(scope.files.list(purpose, limit, order, after), file_object)


@router.get("/{file_id}")
def retrieve(file_id: str, scope: ScopeOf) -> FileObject:
    return file_object(scope.files.get(file_id))


@router.delete("/{file_id}")
def delete(file_id: str, state: StateOf, scope: ScopeOf) -> DeletedFile:
    file = scope.files.delete(file_id)
    state.blobs.delete(file.blob_key)
    return {"id": file.id, "object": "file", "deleted": True}


@router.get("/{file_id}/content", response_class=FileBytes)
def content(file_id: str, state: StateOf, scope: ScopeOf) -> FileBytes:
    file = scope.files.get(file_id)
    try:
        blob = state.blobs.open(file.blob_key)
    except FileNotFoundError:  # deleted since it was looked up
        raise NotFound("file", file_id) from None
    return FileBytes(
        _chunks(blob),
        headers={
            "content-length": str(file.num_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        },
    )


def _chunks(blob: BinaryIO) -> Iterator[bytes]:
    with blob:
        while chunk := blob.read(READ_BYTES):
            yield chunk
