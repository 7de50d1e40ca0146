"""Files: upload, list, retrieve, delete, content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from trunkline.server.errors import ApiError, invalid_value, missing_parameter
from trunkline.server.multipart import (
    MAX_FIELD_BYTES,
    SizeLimits,
    UploadForm,
    read_upload,
    too_large,
)
from trunkline.server.routes.lists import Cursor
from trunkline.server.state import State, StateOf
from trunkline.server.wire import file_object, page_object
from trunkline.store.errors import NotFound
from trunkline.store.records import NewFile, StoredBlob

router = APIRouter(prefix="/v1/files")

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRES_SECONDS, MAX_EXPIRES_SECONDS = 3600, 2_592_000

# What a multipart body may have besides the file: boundaries, headers, small fields.
MAX_OVERHEAD_BYTES = 16 * MAX_FIELD_BYTES
READ_BYTES = 256 * 1024


@router.post("")
async def upload(request: Request, state: StateOf) -> dict[str, Any]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > state.settings.max_file_bytes + MAX_OVERHEAD_BYTES:
        raise too_large(state.settings.max_file_bytes)
    limits = SizeLimits(state.settings.max_file_bytes, state.settings.max_batch_file_bytes)
    with state.blobs.writer() as writer:
        form = await read_upload(
            request.headers.get("content-type"), request.stream(), writer, limits
        )
        check_upload(form, writer.num_bytes, limits)
        blob = await run_sync(writer.commit)
    return await run_sync(_create, state, form, blob)


def check_upload(form: UploadForm, num_bytes: int, limits: SizeLimits) -> None:
    """Raise ApiError unless the upload's purpose, size and content go together."""
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise missing_parameter("purpose")
    if purpose not in PURPOSES:
        allowed = ", ".join(f"'{name}'" for name in PURPOSES)
        raise invalid_value(
            "purpose", f"Invalid value: '{purpose}'. Supported values are: {allowed}."
        )
    if purpose != "batch":
        return
    # A client that sends the file before its purpose is told only now.
    limits.check(purpose, num_bytes)
    # Many clients send no name or another one, so a file is refused only when its content is not
    # JSON objects either.
    if num_bytes and form.first_bytes != b"{" and not form.filename.endswith(".jsonl"):
        raise ApiError(400, "Invalid file format for Batch API. Must be .jsonl")


def _create(state: State, form: UploadForm, blob: StoredBlob) -> dict[str, Any]:
    now = state.now()
    try:
        expires_after = _expires_after_seconds(form.fields)
        if expires_after is None and form.fields["purpose"] == "batch":
            expires_after = state.settings.batch_file_expires_seconds
        expires_at = None if expires_after is None else now + expires_after
        new = NewFile(form.filename, form.fields["purpose"], blob, expires_at)
        return file_object(state.files.create(new, now))
    except BaseException:
        state.blobs.delete(blob.key)
        raise


def _expires_after_seconds(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid_value(
            "expires_after.anchor",
            f"Invalid value for 'expires_after.anchor': expected 'created_at', got {anchor!r}.",
        )
    # Seven digits are enough, and int() refuses some thousands of them.
    if (
        seconds is None
        or not re.fullmatch("[0-9]{1,7}", seconds)
        or not MIN_EXPIRES_SECONDS <= int(seconds) <= MAX_EXPIRES_SECONDS
    ):
        raise invalid_value(
            "expires_after.seconds",
            f"Invalid value for 'expires_after.seconds': expected an integer from "
            f"{MIN_EXPIRES_SECONDS} to {MAX_EXPIRES_SECONDS}, got {seconds!r}.",
        )
    return int(seconds)


@router.get("")
def list_files(
    state: StateOf,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: Cursor = None,
) -> dict[str, Any]:
    return page_object(state.files.list(purpose, limit, order, after), file_object)


@router.get("/{file_id}")
def retrieve(file_id: str, state: StateOf) -> dict[str, Any]:
    return file_object(state.files.get(file_id))


@router.delete("/{file_id}")
def delete(file_id: str, state: StateOf) -> dict[str, Any]:
    file = state.files.delete(file_id)
    state.blobs.delete(file.blob_key)
    return {"id": file.id, "object": "file", "deleted": True}


@router.get("/{file_id}/content")
def content(file_id: str, state: StateOf) -> StreamingResponse:
    file = state.files.get(file_id)
    try:
        blob = state.blobs.open(file.blob_key)
    except FileNotFoundError:  # deleted since it was looked up
        raise NotFound("file", file_id) from None
    return StreamingResponse(
        _chunks(blob),
        media_type="application/octet-stream",
        headers={
            "content-length": str(file.num_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        },
    )


def _chunks(blob: BinaryIO) -> Iterator[bytes]:
    with blob:
        while chunk := blob.read(READ_BYTES):
            yield chunk
